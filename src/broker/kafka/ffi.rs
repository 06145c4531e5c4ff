//! The calls of librdkafka that its safe crate lacks, or makes in a way that cannot be used here. The only unsafe
//! code of this broker.
//!
//! - Headers: the crate panics on a header name that is not UTF-8.
//! - Commits: the crate's asynchronous commit never tells how it ended.
//! - Produce: the crate looks the topic up by name for each event and takes header names only as UTF-8.
//! - Bearer tokens: the crate sets them only while a client is polled, and an admin client is not.
//! - Delivery reports: the crate frees a report only after its callbacks, so they cannot tell that there is room.
//! - Group metadata: the crate hands it to its own transactional producer only.
//! - The mock cluster's join delay.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings as native;
use rdkafka::client::{Client, OAuthToken};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::{ClientContext, TopicPartitionList};

use super::group::GroupMetadata;
use super::token::Tokens;
use crate::event::EventRef;

/// Bytes of librdkafka's reason for not taking a token.
const TOKEN_REASON_MAX: usize = 512;

const NO_ERROR: native::rd_kafka_resp_err_t = native::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR;

fn checked(code: native::rd_kafka_resp_err_t) -> Result<(), RDKafkaErrorCode> {
    if code == NO_ERROR { Ok(()) } else { Err(code.into()) }
}

/// The bytes at `data`; none when it is null.
///
/// # Safety
/// When `data` is not null, `len` bytes from it on must stay valid and unchanged for `'a`.
unsafe fn bytes<'a>(data: *const c_void, len: usize) -> Option<&'a [u8]> {
    // SAFETY: the caller's promise.
    (!data.is_null()).then(|| unsafe { std::slice::from_raw_parts(data.cast(), len) })
}

/// The headers of a consumed message, in order. librdkafka gives names as C strings: a NUL byte ends a name.
#[derive(Clone)]
pub(super) struct Headers<'a> {
    list: *const native::rd_kafka_headers_t,
    next: usize,
    _message: PhantomData<&'a ()>,
}

/// The headers of a message. Parsed on the first call; costs next to nothing for a message that has none.
pub(super) fn headers<'a>(message: &'a BorrowedMessage<'_>) -> Headers<'a> {
    let mut list = ptr::null_mut();
    // SAFETY: the message is alive, and owns the list for as long as it is.
    let code = unsafe { native::rd_kafka_message_headers(message.ptr(), &mut list) };
    let list = if code == NO_ERROR { list } else { ptr::null_mut() };
    Headers { list, next: 0, _message: PhantomData }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a [u8], Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.list.is_null() {
            return None;
        }
        let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the list is alive for 'a; past its end the call answers with an error.
        let code = unsafe { native::rd_kafka_header_get_all(self.list, self.next, &mut name, &mut value, &mut len) };
        if code != NO_ERROR {
            return None;
        }
        self.next += 1;
        // SAFETY: on success the name is a C string, and the value null or `len` bytes, both owned by the list.
        unsafe { Some((CStr::from_ptr(name).to_bytes(), bytes(value, len))) }
    }
}

/// Starts a commit. How it ended comes to the consumer's context, as `commit_callback`, from a later poll.
pub(super) fn commit<C: ConsumerContext>(
    consumer: &BaseConsumer<C>,
    offsets: &TopicPartitionList,
) -> Result<(), RDKafkaErrorCode> {
    let client = consumer.client().native_ptr();
    // SAFETY: the client is alive; the queue is the consumer's own, and our reference to it is given back. The list
    // is copied by the call.
    unsafe {
        let queue = native::rd_kafka_queue_get_consumer(client);
        if queue.is_null() {
            return Err(RDKafkaErrorCode::UnknownGroup);
        }
        let code = native::rd_kafka_commit_queue(client, offsets.ptr(), queue, None, ptr::null_mut());
        native::rd_kafka_queue_destroy(queue);
        checked(code)
    }
}

/// A consumer's membership in its group; none when it has no group.
pub(super) fn group_metadata<C: ConsumerContext>(consumer: &BaseConsumer<C>) -> Option<GroupMetadata> {
    let text = |text: *const c_char| {
        // SAFETY: what is not null is a C string that the metadata, alive below, owns.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    };
    // SAFETY: the client is alive; the metadata is ours, and freed once, after everything was copied out of it.
    unsafe {
        let metadata = native::rd_kafka_consumer_group_metadata(consumer.client().native_ptr());
        if metadata.is_null() {
            return None;
        }
        let found = GroupMetadata {
            group: text(native::rd_kafka_consumer_group_metadata_group_id(metadata)).unwrap_or_default(),
            generation: native::rd_kafka_consumer_group_metadata_generation_id(metadata),
            member: text(native::rd_kafka_consumer_group_metadata_member_id(metadata)).unwrap_or_default(),
            instance: text(native::rd_kafka_consumer_group_metadata_group_instance_id(metadata)),
        };
        native::rd_kafka_consumer_group_metadata_destroy(metadata);
        Some(found)
    }
}

/// A topic of a producer.
pub(super) struct Topic<C: ProducerContext> {
    topic: NonNull<native::rd_kafka_topic_t>,
    /// Keeps the client alive for as long as the handle.
    producer: Arc<BaseProducer<C>>,
}

// SAFETY: librdkafka's topic handles are reference-counted and may be used from any thread.
unsafe impl<C: ProducerContext> Send for Topic<C> {}
// SAFETY: as above.
unsafe impl<C: ProducerContext> Sync for Topic<C> {}

impl<C: ProducerContext> Topic<C> {
    /// A handle for `name`.
    pub(super) fn new(producer: &Arc<BaseProducer<C>>, name: &str) -> Result<Self, RDKafkaErrorCode> {
        let name = CString::new(name).map_err(|_| RDKafkaErrorCode::InvalidTopic)?;
        let client = producer.client().native_ptr();
        // SAFETY: the client is alive, the name is a C string that the call copies, and no settings are handed over.
        let topic = unsafe { native::rd_kafka_topic_new(client, name.as_ptr(), ptr::null_mut()) };
        match NonNull::new(topic) {
            Some(topic) => Ok(Self { topic, producer: producer.clone() }),
            None => Err(RDKafkaErrorCode::InvalidTopic),
        }
    }

    /// Hands an event to the producer, which copies it. `opaque` comes back with the delivery report.
    pub(super) fn produce(&self, event: &EventRef<'_>, opaque: usize) -> Result<(), RDKafkaErrorCode> {
        use native::rd_kafka_vtype_t as Kind;
        type Value = native::rd_kafka_vu_s__bindgen_ty_1;
        let memory = |bytes: Option<&[u8]>| {
            // An empty slice has a pointer that is not null, so empty and null stay apart.
            let (ptr, size) = bytes.map_or((ptr::null(), 0), |bytes| (bytes.as_ptr(), bytes.len()));
            Value { mem: native::rd_kafka_vu_s__bindgen_ty_1__bindgen_ty_1 { ptr: ptr.cast_mut().cast(), size } }
        };
        let argument = |vtype, u| native::rd_kafka_vu_t { vtype, u };
        let mut arguments = [
            argument(Kind::RD_KAFKA_VTYPE_RKT, Value { rkt: self.topic.as_ptr() }),
            argument(Kind::RD_KAFKA_VTYPE_MSGFLAGS, Value { i: native::RD_KAFKA_MSG_F_COPY as c_int }),
            argument(Kind::RD_KAFKA_VTYPE_KEY, memory(event.key)),
            argument(Kind::RD_KAFKA_VTYPE_VALUE, memory(event.value)),
            argument(Kind::RD_KAFKA_VTYPE_TIMESTAMP, Value { i64_: published_timestamp(event.timestamp) }),
            argument(Kind::RD_KAFKA_VTYPE_OPAQUE, Value { ptr: ptr::without_provenance_mut(opaque) }),
            argument(Kind::RD_KAFKA_VTYPE_END, Value { i: 0 }),
        ];
        let headers = HeaderList::of(event)?;
        let mut count = arguments.len() - 1;
        if let Some(headers) = &headers {
            arguments[count] = argument(Kind::RD_KAFKA_VTYPE_HEADERS, Value { headers: headers.0.as_ptr() });
            count += 1;
        }
        // SAFETY: client and topic are alive; each argument's kind says which field of the union it has, and key and
        // value are copied by the call. It takes the header list over exactly when it succeeds.
        unsafe {
            let error = native::rd_kafka_produceva(self.producer.client().native_ptr(), arguments.as_ptr(), count);
            if error.is_null() {
                std::mem::forget(headers);
                return Ok(());
            }
            let code = native::rd_kafka_error_code(error);
            native::rd_kafka_error_destroy(error);
            Err(code.into())
        }
    }
}

impl<C: ProducerContext> Drop for Topic<C> {
    fn drop(&mut self) {
        // SAFETY: ours since `new`, and the client outlives it.
        unsafe { native::rd_kafka_topic_destroy(self.topic.as_ptr()) }
    }
}

/// What librdkafka is told of a timestamp. It takes 0 for "now": an event of the first millisecond of 1970 is
/// published as of the second, rather than as of today.
fn published_timestamp(timestamp: i64) -> i64 {
    if timestamp == 0 { 1 } else { timestamp }
}

/// A list of headers on its way to librdkafka.
struct HeaderList(NonNull<native::rd_kafka_headers_t>);

impl HeaderList {
    fn of(event: &EventRef<'_>) -> Result<Option<Self>, RDKafkaErrorCode> {
        let headers = event.headers.clone();
        if headers.len() == 0 {
            return Ok(None);
        }
        let too_large = |len: usize| isize::try_from(len).map_err(|_| RDKafkaErrorCode::MessageSizeTooLarge);
        // SAFETY: no arguments to get wrong.
        let list = unsafe { native::rd_kafka_headers_new(headers.len()) };
        let list = Self(NonNull::new(list).ok_or(RDKafkaErrorCode::Fail)?);
        for (name, value) in headers {
            let name_len = too_large(name.len())?;
            let (value, value_len) = match value {
                Some(value) => (value.as_ptr().cast(), too_large(value.len())?),
                None => (ptr::null(), 0),
            };
            // SAFETY: the list is ours; name and value have the lengths given and are copied.
            checked(unsafe {
                native::rd_kafka_header_add(list.0.as_ptr(), name.as_ptr().cast(), name_len, value, value_len)
            })?;
        }
        Ok(Some(list))
    }
}

impl Drop for HeaderList {
    fn drop(&mut self) {
        // SAFETY: ours; where librdkafka took it over it was forgotten.
        unsafe { native::rd_kafka_headers_destroy(self.0.as_ptr()) }
    }
}

/// How one event's publication ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Report {
    /// What was handed to [`Topic::produce`].
    pub(super) opaque: usize,
    /// Whether the broker acknowledged it.
    pub(super) result: Result<(), RDKafkaErrorCode>,
    /// The size of key and value.
    pub(super) bytes: usize,
}

/// One thing that a producer has to tell.
pub(super) enum Told<'a> {
    /// Events that ended.
    Reports(Reports<'a>),
    /// An error that concerns the client.
    Error(RDKafkaErrorCode, String),
    /// A line for the log.
    Line(RDKafkaLogLevel, String, String),
    /// The client wants a new bearer token: [`next_token`].
    TokenWanted,
}

/// The reports of one event of the queue.
pub(super) struct Reports<'a> {
    event: *mut native::rd_kafka_event_t,
    _event: PhantomData<&'a ()>,
}

impl Iterator for Reports<'_> {
    type Item = Report;

    fn next(&mut self) -> Option<Report> {
        // SAFETY: the event is a delivery report and is alive; what it returns belongs to it.
        unsafe {
            let message = native::rd_kafka_event_message_next(self.event).as_ref()?;
            let opaque = message._private.addr();
            Some(Report { opaque, result: checked(message.err), bytes: message.len + message.key_len })
        }
    }
}

/// The queue by which a producer tells of delivery reports, errors and log lines.
pub(super) struct Queue<C: ProducerContext> {
    queue: NonNull<native::rd_kafka_queue_t>,
    /// Keeps the client alive for as long as the queue.
    _producer: Arc<BaseProducer<C>>,
}

// SAFETY: librdkafka's queues are reference-counted and may be used from any thread.
unsafe impl<C: ProducerContext> Send for Queue<C> {}

impl<C: ProducerContext> Queue<C> {
    /// The producer's queue.
    pub(super) fn new(producer: &Arc<BaseProducer<C>>) -> Option<Self> {
        // SAFETY: the client is alive.
        let queue = unsafe { native::rd_kafka_queue_get_main(producer.client().native_ptr()) };
        Some(Self { queue: NonNull::new(queue)?, _producer: producer.clone() })
    }

    /// Waits up to `timeout` for the next thing and hands it to `take`. When this returns true, it is freed: there
    /// is room for as many events as it reported.
    pub(super) fn serve(&self, timeout: Duration, take: impl FnOnce(Told<'_>)) -> bool {
        let timeout = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the queue is ours; the event is freed once, by the guard, after its last use.
        unsafe {
            let event = native::rd_kafka_queue_poll(self.queue.as_ptr(), timeout);
            if event.is_null() {
                return false;
            }
            let event = Event(event);
            if let Some(told) = event.told() {
                take(told);
            }
        }
        true
    }
}

impl<C: ProducerContext> Drop for Queue<C> {
    fn drop(&mut self) {
        // SAFETY: ours since `new`, and the client outlives it.
        unsafe { native::rd_kafka_queue_destroy(self.queue.as_ptr()) }
    }
}

/// An event, freed when dropped.
struct Event(*mut native::rd_kafka_event_t);

impl Event {
    /// # Safety
    /// The event must be alive.
    unsafe fn told(&self) -> Option<Told<'_>> {
        let text = |text: *const c_char| {
            if text.is_null() {
                return String::new();
            }
            // SAFETY: what librdkafka gives as text is a C string that the event owns.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().trim().to_owned()
        };
        // SAFETY: the event is alive, and each call fits its type.
        unsafe {
            match native::rd_kafka_event_type(self.0) {
                native::RD_KAFKA_EVENT_DR => Some(Told::Reports(Reports { event: self.0, _event: PhantomData })),
                native::RD_KAFKA_EVENT_ERROR => {
                    let reason = text(native::rd_kafka_event_error_string(self.0));
                    Some(Told::Error(native::rd_kafka_event_error(self.0).into(), reason))
                }
                native::RD_KAFKA_EVENT_LOG => {
                    let (mut kind, mut line, mut level) = (ptr::null(), ptr::null(), 0);
                    let code = native::rd_kafka_event_log(self.0, &mut kind, &mut line, &mut level);
                    (code == 0).then(|| Told::Line(log_level(level), text(kind), text(line)))
                }
                native::RD_KAFKA_EVENT_OAUTHBEARER_TOKEN_REFRESH => Some(Told::TokenWanted),
                _ => None,
            }
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: ours, and freed once.
        unsafe { native::rd_kafka_event_destroy(self.0) }
    }
}

/// The level of a line, as syslog counts.
fn log_level(level: c_int) -> RDKafkaLogLevel {
    match level {
        ..=3 => RDKafkaLogLevel::Error,
        4 => RDKafkaLogLevel::Warning,
        5 => RDKafkaLogLevel::Notice,
        6 => RDKafkaLogLevel::Info,
        _ => RDKafkaLogLevel::Debug,
    }
}

/// Waits until nothing is in flight, while another thread serves the [`Queue`]; false when `timeout` passed first.
pub(super) fn flush<C: ProducerContext>(producer: &BaseProducer<C>, timeout: Duration) -> bool {
    let timeout = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the client is alive.
    unsafe { native::rd_kafka_flush(producer.client().native_ptr(), timeout) == NO_ERROR }
}

/// Gives a client that authenticates by bearer tokens its first one.
///
/// # Errors
/// When there is none that can be used.
pub(super) fn first_token<C: ClientContext>(client: &Client<C>, tokens: &Tokens) -> Result<(), KafkaError> {
    if !tokens.are_used() {
        return Ok(());
    }
    tokens.next().and_then(|token| set_token(client, token.into())).map_err(KafkaError::ClientCreation)
}

/// Answers a client that wants a new bearer token.
pub(super) fn next_token<C: ClientContext>(client: &Client<C>, tokens: &Tokens) {
    let Err(reason) = tokens.next().and_then(|token| set_token(client, token.into())) else { return };
    let reason = CString::new(reason).unwrap_or_default();
    // SAFETY: the client is alive, and the reason is a C string that the call copies.
    unsafe { native::rd_kafka_oauthbearer_set_token_failure(client.native_ptr(), reason.as_ptr()) };
}

fn set_token<C: ClientContext>(client: &Client<C>, token: OAuthToken) -> Result<(), String> {
    let text = |text: String| CString::new(text).map_err(|_| "the token has a NUL byte in it".to_owned());
    let (value, principal) = (text(token.token)?, text(token.principal_name)?);
    let mut reason = [0; TOKEN_REASON_MAX];
    // SAFETY: the client is alive; the texts are C strings that the call copies; there are no extensions; and the
    // reason is written as a C string into the bytes that are given.
    let (code, reason) = unsafe {
        let code = native::rd_kafka_oauthbearer_set_token(
            client.native_ptr(),
            value.as_ptr(),
            token.lifetime_ms,
            principal.as_ptr(),
            ptr::null_mut(),
            0,
            reason.as_mut_ptr(),
            reason.len(),
        );
        (code, CStr::from_ptr(reason.as_ptr()))
    };
    checked(code).map_err(|_| reason.to_string_lossy().into_owned())
}

/// How long the first member of a group waits for others; false when the client has no mock cluster.
pub(super) fn mock_join_delay<C: ClientContext>(client: &Client<C>, delay: Duration) -> bool {
    let delay = i32::try_from(delay.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the client is alive and owns its mock cluster, if it has one.
    unsafe {
        let cluster = native::rd_kafka_handle_mock_cluster(client.native_ptr());
        if !cluster.is_null() {
            native::rd_kafka_mock_group_initial_rebalance_delay_ms(cluster, delay);
        }
        !cluster.is_null()
    }
}
