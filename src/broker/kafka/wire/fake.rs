//! A cluster for tests of the fetcher and the producer: real ports, partitions that follow Kafka's rules for
//! idempotent producers, and faults that are asked for one by one.

mod log;
mod raw;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use kafka_protocol::messages::api_versions_response::ApiVersion;
use kafka_protocol::messages::fetch_response::{AbortedTransaction, FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::list_offsets_response::{ListOffsetsPartitionResponse, ListOffsetsTopicResponse};
use kafka_protocol::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::produce_response::{
    BatchIndexAndErrorMessage, PartitionProduceResponse, TopicProduceResponse,
};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, BrokerId, FetchRequest, FetchResponse, InitProducerIdRequest,
    InitProducerIdResponse, ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, MetadataResponse, ProduceRequest,
    ProduceResponse, ProducerId, RequestHeader, ResponseHeader,
};
use kafka_protocol::protocol::{Decodable as _, Encodable as _, HeaderVersion, Request, StrBytes};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

pub(super) use self::log::Log;
pub(super) use self::raw::{LOG_APPEND_TIME, Raw, TIME, set};
use super::response::ErrorCode;
use crate::spec::{ColumnarSettings, KafkaClient, KafkaConnection};

/// What happens to a request instead of what should.
pub(super) enum Fault {
    /// Nothing is done, and every partition is told this.
    Say(ErrorCode),
    /// Everything is done, and every partition is told this.
    SayAfter(ErrorCode),
    /// The connection ends while the request comes.
    HangUp,
    /// Everything is done, but the connection ends before the answer.
    HangUpAfter,
    /// Everything is done, and the connection ends within the answer.
    HalfAnswer,
    /// Everything is done, and no answer comes.
    Silence,
    /// Everything is done, and the client is throttled, in milliseconds.
    Throttle(i32),
    /// Nothing is done, and an empty answer to a produce request is changed.
    ProducedInstead(Box<dyn Fn(&mut PartitionProduceResponse) + Send + Sync>),
    /// It is not looked at before this is told.
    Hold(Arc<Notify>),
    /// The answer to a fetch is changed.
    Fetched(Box<dyn Fn(&mut FetchResponse) + Send + Sync>),
}

/// What a cluster has.
#[derive(Default)]
pub(super) struct State {
    ports: Vec<u16>,
    /// Brokers that Metadata does not tell of.
    pub(super) hidden: Vec<i32>,
    pub(super) topics: BTreeMap<String, Vec<Log>>,
    /// What is told of topics instead of their partitions.
    pub(super) topic_errors: BTreeMap<String, ErrorCode>,
    faults: Vec<(ApiKey, VecDeque<Fault>)>,
    /// Every request that came: the node and what it asked.
    pub(super) requests: Vec<(i32, ApiKey)>,
    producers: i64,
}

/// A cluster, which ends when this is dropped.
pub(super) struct Cluster {
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
    _tasks: JoinSet<()>,
}

impl Cluster {
    /// A cluster of so many brokers, numbered from zero. The partitions of its topics are dealt to them.
    pub(super) fn start(brokers: usize, topics: &[(&str, usize)]) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let (mut tasks, changed) = (JoinSet::new(), Arc::new(Notify::new()));
        let state = Arc::new(Mutex::new(State::default()));
        for node in 0..brokers {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            listener.set_nonblocking(true).unwrap();
            let listener = TcpListener::from_std(listener).unwrap();
            state.lock().unwrap().ports.push(listener.local_addr().unwrap().port());
            let node = Node { id: node as i32, state: state.clone(), changed: changed.clone() };
            tasks.spawn(node.listen(listener));
        }
        let cluster = Self { state, changed, _tasks: tasks };
        for (name, partitions) in topics {
            let logs = (0..*partitions).map(|partition| Log::new((partition % brokers) as i32)).collect();
            cluster.lock().topics.insert((*name).to_owned(), logs);
        }
        cluster
    }

    /// How to connect to it.
    pub(super) fn connection(&self, settings: &ColumnarSettings) -> KafkaConnection {
        let brokers = self.lock().ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        let client = KafkaClient::Columnar(settings.clone());
        KafkaConnection { brokers, tls: None, sasl: None, client, properties: Default::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next requests of this kind fail so, one after the other.
    pub(super) fn fail(&self, api: ApiKey, faults: impl IntoIterator<Item = Fault>) {
        self.lock().faults.push((api, faults.into_iter().collect()));
    }

    /// The same fault, so many times.
    pub(super) fn say(&self, api: ApiKey, code: ErrorCode, times: usize) {
        self.fail(api, std::iter::repeat_with(|| Fault::Say(code)).take(times));
    }

    /// Changes a partition; who waits for it is told.
    pub(super) fn log<T>(&self, topic: &str, partition: usize, change: impl FnOnce(&mut Log) -> T) -> T {
        let changed = change(&mut self.lock().topics.get_mut(topic).unwrap()[partition]);
        self.changed.notify_waiters();
        changed
    }

    /// How many requests of this kind came.
    pub(super) fn count(&self, api: ApiKey) -> usize {
        self.lock().requests.iter().filter(|(_, asked)| *asked == api).count()
    }

    /// Whether faults are left.
    pub(super) fn has_faults(&self) -> bool {
        self.lock().faults.iter().any(|(_, faults)| !faults.is_empty())
    }

    /// The values of all records of a partition.
    pub(super) fn values(&self, topic: &str, partition: usize) -> Vec<String> {
        self.lock().topics[topic][partition].values()
    }
}

/// One broker.
#[derive(Clone)]
struct Node {
    id: i32,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
}

/// A request's header, and the connection that it came on.
struct Caller<'a> {
    stream: &'a mut TcpStream,
    version: i16,
    correlation: i32,
}

impl Node {
    async fn listen(self, listener: TcpListener) {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(self.clone().serve(stream));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Serves until the client hangs up, or a fault ends the connection.
    async fn serve(self, mut stream: TcpStream) {
        while self.request(&mut stream).await.is_some() {}
    }

    async fn request(&self, stream: &mut TcpStream) -> Option<()> {
        let length = stream.read_u32().await.ok()?;
        let (key, version) = (stream.read_i16().await.ok()?, stream.read_i16().await.ok()?);
        let api = ApiKey::try_from(key).unwrap();
        let fault = {
            let mut state = self.lock();
            state.requests.push((self.id, api));
            let faults = state.faults.iter_mut().find(|(of, faults)| *of == api && !faults.is_empty());
            faults.and_then(|(_, faults)| faults.pop_front())
        };
        if matches!(fault, Some(Fault::HangUp)) {
            return None;
        }
        let mut frame = BytesMut::new();
        frame.extend_from_slice(&key.to_be_bytes());
        frame.extend_from_slice(&version.to_be_bytes());
        frame.resize(length as usize, 0);
        stream.read_exact(&mut frame[4..]).await.ok()?;
        if let Some(Fault::Hold(held)) = &fault {
            held.notified().await;
        }
        let mut frame = frame.freeze();
        let header = RequestHeader::decode(&mut frame, api.request_header_version(version)).unwrap();
        let caller = Caller { stream, version, correlation: header.correlation_id };
        match api {
            ApiKey::ApiVersions => caller.answer::<ApiVersionsRequest>(frame, fault, |_, _| versions()).await,
            ApiKey::Metadata => caller.answer::<MetadataRequest>(frame, fault, |asked, _| self.metadata(&asked)).await,
            ApiKey::InitProducerId => {
                caller.answer::<InitProducerIdRequest>(frame, fault, |_, fault| self.identify(fault)).await
            }
            ApiKey::Produce => {
                caller.answer::<ProduceRequest>(frame, fault, |asked, fault| self.produce(&asked, fault)).await
            }
            ApiKey::ListOffsets => {
                caller.answer::<ListOffsetsRequest>(frame, fault, |asked, fault| self.list(&asked, fault)).await
            }
            ApiKey::Fetch => {
                let asked = FetchRequest::decode(&mut frame, version).unwrap();
                let answer = self.fetch(&asked, fault.as_ref()).await;
                caller.answer::<FetchRequest>(Bytes::new(), fault, |_, _| answer).await
            }
            other => panic!("{other:?} is not served"),
        }
    }

    fn metadata(&self, asked: &MetadataRequest) -> MetadataResponse {
        let state = self.lock();
        let brokers = state.ports.iter().zip(0..).filter(|(_, id)| !state.hidden.contains(id)).map(|(port, id)| {
            let broker = MetadataResponseBroker::default().with_node_id(BrokerId(id));
            broker.with_host(StrBytes::from_static_str("127.0.0.1")).with_port(i32::from(*port))
        });
        let topics = asked.topics.iter().flatten().map(|topic| {
            let name = topic.name.clone().unwrap();
            let told = MetadataResponseTopic::default().with_name(Some(name.clone()));
            if let Some(error) = state.topic_errors.get(&*name.0) {
                return told.with_error_code(error.0);
            }
            let Some(logs) = state.topics.get(&*name.0) else {
                return told.with_error_code(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION.0);
            };
            told.with_partitions(
                logs.iter()
                    .zip(0..)
                    .map(|(log, index)| {
                        let error =
                            if log.leader.is_none() { ErrorCode::LEADER_NOT_AVAILABLE } else { ErrorCode::NONE };
                        MetadataResponsePartition::default()
                            .with_error_code(error.0)
                            .with_partition_index(index)
                            .with_leader_id(BrokerId(log.leader.unwrap_or(-1)))
                            .with_leader_epoch(log.epoch)
                    })
                    .collect(),
            )
        });
        MetadataResponse::default().with_brokers(brokers.collect()).with_topics(topics.collect())
    }

    fn identify(&self, fault: Option<&Fault>) -> InitProducerIdResponse {
        if let Some(Fault::Say(code)) = fault {
            return InitProducerIdResponse::default().with_error_code(code.0);
        }
        let mut state = self.lock();
        state.producers += 1;
        InitProducerIdResponse::default().with_producer_id(ProducerId(state.producers)).with_producer_epoch(0)
    }

    fn produce(&self, asked: &ProduceRequest, fault: Option<&Fault>) -> ProduceResponse {
        let mut state = self.lock();
        let mut topics = Vec::new();
        assert_eq!(asked.acks, -1);
        for topic in &asked.topic_data {
            let mut partitions = Vec::new();
            for data in &topic.partition_data {
                let mut said = PartitionProduceResponse::default().with_index(data.index);
                let log = state.topics.get_mut(&*topic.name.0).and_then(|logs| logs.get_mut(data.index as usize));
                let told = match (fault, log) {
                    (Some(Fault::Say(code)), _) => Err(*code),
                    (Some(Fault::ProducedInstead(change)), _) => {
                        change(&mut said);
                        partitions.push(said);
                        continue;
                    }
                    (_, None) => Err(ErrorCode::UNKNOWN_TOPIC_OR_PARTITION),
                    (_, Some(log)) if log.leader != Some(self.id) => Err(ErrorCode::NOT_LEADER_OR_FOLLOWER),
                    (fault, Some(log)) => match (log.append(data.records.as_ref().unwrap()), fault) {
                        (Ok(_), Some(Fault::SayAfter(code))) => Err(*code),
                        (told, _) => told,
                    },
                };
                partitions.push(match told {
                    Ok(offset) => said.with_base_offset(offset),
                    Err(code) => said.with_error_code(code.0).with_base_offset(-1),
                });
                if told == Err(ErrorCode::INVALID_RECORD) {
                    let log = &state.topics[&*topic.name.0][data.index as usize];
                    let named = log.poisoned(data.records.as_ref().unwrap()).into_iter().map(|index| {
                        BatchIndexAndErrorMessage::default()
                            .with_batch_index(index)
                            .with_batch_index_error_message(Some(StrBytes::from_static_str("it is poison")))
                    });
                    partitions.last_mut().unwrap().record_errors = named.filter(|_| log.names_poison).collect();
                }
            }
            topics.push(
                TopicProduceResponse::default().with_name(topic.name.clone()).with_partition_responses(partitions),
            );
        }
        drop(state);
        self.changed.notify_waiters();
        ProduceResponse::default().with_responses(topics)
    }

    fn list(&self, asked: &ListOffsetsRequest, fault: Option<&Fault>) -> ListOffsetsResponse {
        let state = self.lock();
        let topics = asked.topics.iter().map(|topic| {
            let partitions = topic.partitions.iter().map(|partition| {
                let log = &state.topics[&*topic.name.0][partition.partition_index as usize];
                let error = match fault {
                    Some(Fault::Say(code)) => *code,
                    _ => log.refusal(self.id, partition.current_leader_epoch),
                };
                ListOffsetsPartitionResponse::default()
                    .with_partition_index(partition.partition_index)
                    .with_error_code(error.0)
                    .with_offset(log.start)
            });
            ListOffsetsTopicResponse::default().with_name(topic.name.clone()).with_partitions(partitions.collect())
        });
        ListOffsetsResponse::default().with_topics(topics.collect())
    }

    /// Waits for events as long as it was asked to.
    async fn fetch(&self, asked: &FetchRequest, fault: Option<&Fault>) -> FetchResponse {
        let wait = Duration::from_millis(asked.max_wait_ms as u64);
        let deadline = tokio::time::Instant::now() + wait;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let (answer, is_empty) = self.fetch_now(asked, fault);
            if !is_empty || tokio::time::timeout_at(deadline, changed).await.is_err() {
                return answer;
            }
        }
    }

    fn fetch_now(&self, asked: &FetchRequest, fault: Option<&Fault>) -> (FetchResponse, bool) {
        let state = self.lock();
        assert!(!asked.topics.is_empty(), "a fetch of nothing");
        let (mut topics, mut left, mut is_empty, mut is_first) = (Vec::new(), asked.max_bytes as usize, true, true);
        for topic in &asked.topics {
            let mut partitions = Vec::new();
            for wanted in &topic.partitions {
                let mut told = PartitionData::default()
                    .with_partition_index(wanted.partition)
                    .with_preferred_read_replica(BrokerId(-1))
                    .with_records(Some(Bytes::new()));
                let log = state.topics.get(&*topic.topic.0).and_then(|logs| logs.get(wanted.partition as usize));
                let error = match (fault, log) {
                    (Some(Fault::Say(code)), _) => *code,
                    (_, None) => ErrorCode::UNKNOWN_TOPIC_OR_PARTITION,
                    (_, Some(log)) => match log.refusal(self.id, wanted.current_leader_epoch) {
                        ErrorCode::NONE if wanted.fetch_offset < log.start || wanted.fetch_offset > log.end => {
                            ErrorCode::OFFSET_OUT_OF_RANGE
                        }
                        error => error,
                    },
                };
                told = told.with_error_code(error.0);
                is_empty &= error.is_ok();
                if let (Some(log), true) = (log, error.is_ok()) {
                    let elsewhere = log.preferred.filter(|_| log.leader == Some(self.id) && !asked.rack_id.is_empty());
                    if let Some(replica) = elsewhere {
                        told = told.with_preferred_read_replica(BrokerId(replica));
                        is_empty = false;
                    } else if left > 0 {
                        let most = left.min(wanted.partition_max_bytes as usize);
                        let records = log.read(wanted.fetch_offset, most);
                        // Only the first is sure to get a batch.
                        let records = if records.len() > left && !is_first { Vec::new() } else { records };
                        is_first &= records.is_empty();
                        left = left.saturating_sub(records.len());
                        is_empty &= records.is_empty();
                        told = told.with_high_watermark(log.end).with_records(Some(records.into()));
                        let aborted = log.aborted.iter().map(|aborted| {
                            AbortedTransaction::default()
                                .with_producer_id(ProducerId(aborted.producer_id))
                                .with_first_offset(aborted.first_offset)
                        });
                        told = told.with_aborted_transactions(Some(aborted.collect()));
                    }
                }
                partitions.push(told);
            }
            topics.push(FetchableTopicResponse::default().with_topic(topic.topic.clone()).with_partitions(partitions));
        }
        (FetchResponse::default().with_responses(topics), is_empty)
    }
}

impl Log {
    /// Why this node does not serve a client that knows this epoch, if it does not.
    fn refusal(&self, node: i32, epoch: i32) -> ErrorCode {
        if self.leader != Some(node) && self.preferred != Some(node) {
            ErrorCode::NOT_LEADER_OR_FOLLOWER
        } else if epoch >= 0 && epoch < self.epoch {
            ErrorCode::FENCED_LEADER_EPOCH
        } else if epoch > self.epoch {
            ErrorCode::UNKNOWN_LEADER_EPOCH
        } else {
            ErrorCode::NONE
        }
    }
}

/// An answer that a throttle time can be written into.
trait Answer {
    fn throttle(&mut self, _: i32) {}

    fn change(&mut self, _: &Fault) {}
}

impl Answer for ApiVersionsResponse {}
impl Answer for MetadataResponse {}
impl Answer for ListOffsetsResponse {}
impl Answer for InitProducerIdResponse {}

impl Answer for ProduceResponse {
    fn throttle(&mut self, millis: i32) {
        self.throttle_time_ms = millis;
    }
}

impl Answer for FetchResponse {
    fn throttle(&mut self, millis: i32) {
        self.throttle_time_ms = millis;
    }

    fn change(&mut self, fault: &Fault) {
        if let Fault::Fetched(change) = fault {
            change(self);
        }
    }
}

impl Caller<'_> {
    /// Answers, unless a fault keeps it from that; none when the connection has ended.
    async fn answer<R>(
        self,
        mut frame: Bytes,
        fault: Option<Fault>,
        act: impl FnOnce(R, Option<&Fault>) -> R::Response,
    ) -> Option<()>
    where
        R: Request + Default,
        R::Response: Answer,
    {
        // What waits before it answers has read its request already.
        let asked = if frame.has_remaining() { R::decode(&mut frame, self.version).unwrap() } else { R::default() };
        let mut answer = act(asked, fault.as_ref());
        match &fault {
            Some(Fault::Throttle(millis)) => answer.throttle(*millis),
            Some(fault) => answer.change(fault),
            None => {}
        }
        let mut body = BytesMut::new();
        let header = ResponseHeader::default().with_correlation_id(self.correlation);
        header.encode(&mut body, R::Response::header_version(self.version)).unwrap();
        answer.encode(&mut body, self.version).unwrap();
        let mut whole = BytesMut::from(&u32::try_from(body.len()).unwrap().to_be_bytes()[..]);
        whole.extend_from_slice(&body);
        match fault {
            Some(Fault::HangUpAfter) => return None,
            Some(Fault::Silence) => std::future::pending::<()>().await,
            Some(Fault::HalfAnswer) => {
                self.stream.write_all(&whole[..whole.len() / 2]).await.ok()?;
                return None;
            }
            _ => {}
        }
        self.stream.write_all(&whole).await.ok()
    }
}

fn versions() -> ApiVersionsResponse {
    let apis = [
        (ApiKey::Produce, 3, 9),
        (ApiKey::Fetch, 4, 12),
        (ApiKey::ListOffsets, 1, 6),
        (ApiKey::Metadata, 0, 9),
        (ApiKey::ApiVersions, 0, 3),
        (ApiKey::InitProducerId, 0, 4),
    ];
    let told = apis.map(|(api, min, max)| {
        ApiVersion::default().with_api_key(api as i16).with_min_version(min).with_max_version(max)
    });
    ApiVersionsResponse::default().with_api_keys(told.to_vec())
}
