//! Asks the coordinators of a transaction and of a group, one question at a time. Decides nothing: see `transaction`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, EndTxnRequest, FindCoordinatorRequest, GroupId,
    InitProducerIdRequest, ProducerId, TransactionalId, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::StrBytes;

use super::super::cluster::{Address, Control, topic_name};
use super::super::connection::{Connection, Options};
use super::super::error::{WireError, WireErrorKind};
use super::super::record_batch::Producer;
use super::super::response::{Call, ErrorCode};
use super::transaction::state::{Answer, Ask};
use super::transaction::{Offsets, TransactionSpec};
use crate::delivery::TopicPartition;
use crate::spec::{ColumnarSettings, KafkaConnection};

/// The version of InitProducerId from which on the next epoch can be asked for (KIP-360).
const BUMPS: i16 = 3;

/// Kinds of coordinators, as FindCoordinator numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Group = 0,
    Transaction = 1,
}

/// A coordinator.
#[derive(Debug)]
struct Coordinator {
    kind: Kind,
    key: String,
    address: Option<Address>,
    connection: Option<Connection>,
}

impl Coordinator {
    fn new(kind: Kind, key: &str) -> Self {
        Self { kind, key: key.to_owned(), address: None, connection: None }
    }
}

/// Why a question has no answer of its coordinator.
enum Silence {
    /// Where the coordinator is cannot be told.
    NotFound(ErrorCode),
    /// A connection has failed.
    Failed(WireError),
}

impl From<WireError> for Silence {
    fn from(error: WireError) -> Self {
        Self::Failed(error)
    }
}

/// The coordinators of a producer. A question takes the whole value and gives it back with the answer.
#[derive(Debug)]
pub(super) struct Coordinators {
    spec: TransactionSpec,
    control: Control,
    options: Arc<Options>,
    timeout: Duration,
    transaction: Coordinator,
    group: Coordinator,
    /// Whether the transaction's coordinator knows epochs that are asked for; false before it was asked.
    pub(super) bumps: bool,
}

impl Coordinators {
    /// Nothing is connected yet.
    pub(super) fn new(
        connection: &KafkaConnection,
        settings: &ColumnarSettings,
        options: Arc<Options>,
        spec: TransactionSpec,
    ) -> Self {
        Self {
            control: Control::new(connection, settings, options.clone()),
            options,
            timeout: settings.socket_timeout,
            transaction: Coordinator::new(Kind::Transaction, &spec.id),
            group: Coordinator::new(Kind::Group, ""),
            bumps: false,
            spec,
        }
    }

    /// Whoever was asked last is not the coordinator any more, or does not answer.
    pub(super) fn forget(&mut self, ask: &Ask) {
        let coordinator = match ask {
            Ask::CommitOffsets(_) => &mut self.group,
            _ => &mut self.transaction,
        };
        (coordinator.address, coordinator.connection) = (None, None);
    }

    /// Asks, under this id and epoch.
    ///
    /// # Errors
    /// When a connection fails for good. One that may pass is [`Answer::Lost`].
    pub(super) async fn ask(mut self, ask: Ask, producer: Producer) -> (Self, Ask, Result<Answer, WireError>) {
        let answer = match self.answer(&ask, producer).await {
            Ok(answer) => Ok(answer),
            Err(Silence::NotFound(code)) => Ok(Answer::NoCoordinator(code)),
            Err(Silence::Failed(error)) if error.kind.may_pass() => {
                tracing::debug!(target: "fluxmill::kafka", "coordinator: {}", error.reason);
                Ok(Answer::Lost)
            }
            Err(Silence::Failed(error)) => Err(error),
        };
        (self, ask, answer)
    }

    async fn answer(&mut self, ask: &Ask, producer: Producer) -> Result<Answer, Silence> {
        match ask {
            Ask::Init { current } => self.init(*current).await,
            Ask::AddPartitions(partitions) => {
                let request = add_partitions(self.id(), producer, partitions);
                let told = self.call(Kind::Transaction, &request).await?;
                Ok(by_partition(partitions.iter(), told.topics.iter().map(|topic| (&topic.name, &topic.partitions))))
            }
            Ask::AddOffsets(offsets) => {
                let request = AddOffsetsToTxnRequest::default()
                    .with_transactional_id(self.id())
                    .with_producer_id(ProducerId(producer.id))
                    .with_producer_epoch(producer.epoch)
                    .with_group_id(GroupId(text(&offsets.group.group)));
                Ok(Answer::Code(self.call(Kind::Transaction, &request).await?.error))
            }
            Ask::CommitOffsets(offsets) => {
                if self.group.key != offsets.group.group {
                    self.group = Coordinator::new(Kind::Group, &offsets.group.group);
                }
                let request = commit_offsets(self.id(), producer, offsets);
                let told = self.call(Kind::Group, &request).await?;
                let asked = offsets.next.iter().map(|(partition, _)| partition);
                Ok(by_partition(asked, told.topics.iter().map(|topic| (&topic.name, &topic.partitions))))
            }
            Ask::End { commit } => {
                let request = EndTxnRequest::default()
                    .with_transactional_id(self.id())
                    .with_producer_id(ProducerId(producer.id))
                    .with_producer_epoch(producer.epoch)
                    .with_committed(*commit);
                Ok(Answer::Code(self.call(Kind::Transaction, &request).await?.error))
            }
        }
    }

    async fn init(&mut self, current: Option<Producer>) -> Result<Answer, Silence> {
        let Producer { id, epoch } = current.unwrap_or(Producer { id: -1, epoch: -1 });
        let request = InitProducerIdRequest::default()
            .with_transactional_id(Some(self.id()))
            .with_transaction_timeout_ms(i32::try_from(self.spec.timeout.as_millis()).unwrap_or(i32::MAX))
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(epoch);
        let told = self.call(Kind::Transaction, &request).await?;
        if let Some(connection) = &self.transaction.connection {
            self.bumps = connection.version::<InitProducerIdRequest>()? >= BUMPS;
        }
        Ok(if told.error.is_ok() {
            Answer::Identity(Producer { id: told.producer_id, epoch: told.producer_epoch })
        } else {
            Answer::Code(told.error)
        })
    }

    /// Asks a coordinator, which is looked up when it is not known.
    async fn call<R: Call>(&mut self, kind: Kind, request: &R) -> Result<R::Response, Silence> {
        let coordinator = match kind {
            Kind::Group => &mut self.group,
            Kind::Transaction => &mut self.transaction,
        };
        // A connection that was kept may have been closed meanwhile: that is no reason to wait.
        if let Some(mut connection) = coordinator.connection.take()
            && connection.expires().is_none_or(|at| at.into_std() > Instant::now())
        {
            match connection.call(request, self.timeout).await {
                Ok(answer) => {
                    coordinator.connection = Some(connection);
                    return Ok(answer);
                }
                Err(error) if error.kind == WireErrorKind::Closed => {}
                Err(error) => return Err(error.into()),
            }
        }
        let address = match &coordinator.address {
            Some(address) => address.clone(),
            None => find(&mut self.control, coordinator).await?,
        };
        let mut connection = Connection::open(&address.host, address.port, &self.options).await?;
        let answer = connection.call(request, self.timeout).await?;
        (coordinator.address, coordinator.connection) = (Some(address), Some(connection));
        Ok(answer)
    }

    fn id(&self) -> TransactionalId {
        TransactionalId(text(&self.spec.id))
    }
}

async fn find(control: &mut Control, coordinator: &Coordinator) -> Result<Address, Silence> {
    let request =
        FindCoordinatorRequest::default().with_key(text(&coordinator.key)).with_key_type(coordinator.kind as i8);
    let told = control.ask(&request).await?;
    match told.coordinator {
        Some(found) => Ok(Address { host: found.host, port: found.port }),
        None => Err(Silence::NotFound(told.error)),
    }
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

/// By topic, in the order of their names.
fn by_topic<'a, T>(
    partitions: impl Iterator<Item = (&'a TopicPartition, T)>,
) -> impl Iterator<Item = (&'a Arc<str>, Vec<T>)> {
    let mut topics: BTreeMap<&Arc<str>, Vec<T>> = BTreeMap::new();
    for (partition, what) in partitions {
        topics.entry(&partition.topic).or_default().push(what);
    }
    topics.into_iter()
}

fn add_partitions(id: TransactionalId, producer: Producer, partitions: &[TopicPartition]) -> AddPartitionsToTxnRequest {
    let topics = by_topic(partitions.iter().map(|partition| (partition, partition.partition)));
    let topics = topics.map(|(topic, partitions)| {
        AddPartitionsToTxnTopic::default().with_name(topic_name(topic)).with_partitions(partitions)
    });
    AddPartitionsToTxnRequest::default()
        .with_v3_and_below_transactional_id(id)
        .with_v3_and_below_producer_id(ProducerId(producer.id))
        .with_v3_and_below_producer_epoch(producer.epoch)
        .with_v3_and_below_topics(topics.collect())
}

fn commit_offsets(id: TransactionalId, producer: Producer, offsets: &Offsets) -> TxnOffsetCommitRequest {
    let partitions = offsets.next.iter().map(|(partition, next)| {
        let committed = TxnOffsetCommitRequestPartition::default()
            .with_partition_index(partition.partition)
            .with_committed_offset(*next)
            .with_committed_metadata(Some(StrBytes::from_static_str("")));
        (partition, committed)
    });
    let topics = by_topic(partitions).map(|(topic, partitions)| {
        TxnOffsetCommitRequestTopic::default().with_name(topic_name(topic)).with_partitions(partitions)
    });
    let group = &offsets.group;
    TxnOffsetCommitRequest::default()
        .with_transactional_id(id)
        .with_group_id(GroupId(text(&group.group)))
        .with_producer_id(ProducerId(producer.id))
        .with_producer_epoch(producer.epoch)
        .with_generation_id(group.generation)
        .with_member_id(text(&group.member))
        .with_group_instance_id(group.instance.as_deref().map(text))
        .with_topics(topics.collect())
}

/// What was told of each partition that was asked for. One that is not in the answer has an error.
fn by_partition<'a>(
    asked: impl Iterator<Item = &'a TopicPartition>,
    told: impl Iterator<Item = (&'a String, &'a Vec<(i32, ErrorCode)>)>,
) -> Answer {
    let told: BTreeMap<(&str, i32), ErrorCode> = told
        .flat_map(|(topic, partitions)| partitions.iter().map(|(at, code)| ((topic.as_str(), *at), *code)))
        .collect();
    let code = |partition: &TopicPartition| {
        let code = told.get(&(&*partition.topic, partition.partition)).copied();
        (partition.clone(), code.unwrap_or(ErrorCode::UNKNOWN_SERVER_ERROR))
    };
    Answer::Partitions(asked.map(code).collect())
}
