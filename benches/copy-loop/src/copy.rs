//! The raw librdkafka copy loop: what a program can reach that does nothing but copy events from topic to topic with
//! the guarantee of at least once.
//!
//! It is written against librdkafka's C interface, because that is the fastest way in: messages are consumed in
//! batches from the consumer's queue, handed to an idempotent producer, and freed. The producer's own copy of key
//! and value is the only one. An offset is stored for commit only when every event of its batch, and of all batches
//! before it, was acknowledged. Headers are not copied: the loop is a bound, not a product.
//!
//! It can also do the work of a function on the way, natively: parse the order with serde_json, drop it or add a field,
//! and write it again.

use std::collections::VecDeque;
use std::ffi::{CStr, CString, c_char, c_void};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use order::Order;
use rdkafka::bindings::*;

/// Messages taken from the consumer's queue at once.
const BATCH: usize = 1000;
/// How long one look at a queue may take.
const POLL_MS: i32 = 100;
/// Without any event consumed or acknowledged for this long the loop gives up.
const STALLED: Duration = Duration::from_secs(30);
/// `RD_KAFKA_MSG_F_COPY`: the producer copies key and value.
const COPY_PAYLOAD: i32 = 2;
/// `RD_KAFKA_PARTITION_UA`: the producer's partitioner chooses.
const ANY_PARTITION: i32 = -1;

/// What is done to each event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    /// Nothing.
    Copy,
    /// It is parsed as an order, dropped when it is small, and written with its price.
    Price,
}

/// How the loop works.
#[derive(Clone, Debug)]
pub struct Settings<'a> {
    /// `host:port`.
    pub brokers: &'a str,
    /// The topic that is read.
    pub input: &'a str,
    /// The topic that is written.
    pub output: &'a str,
    /// How many events are consumed.
    pub events: u64,
    /// What is done to them.
    pub job: Job,
    /// librdkafka's `compression.type`.
    pub compression: &'a str,
}

/// What the loop did.
#[derive(Debug)]
pub struct Copied {
    /// Events consumed; those that were not dropped are acknowledged.
    pub events: u64,
    /// From the first event consumed to the last acknowledged.
    pub seconds: f64,
    /// User and system time of this process in that span.
    pub cpu_seconds: f64,
}

/// The events of one look at the consumer's queue.
struct Batch {
    /// Events that are not acknowledged, plus one while the batch is still being produced.
    left: AtomicUsize,
    /// For each partition in it, the offset to commit when the batch has ended.
    next: Vec<(i32, i64)>,
}

/// What the delivery reports need.
struct State {
    consumer: *mut rd_kafka_t,
    topic: CString,
    /// Batches in the order of consumption, each until it and all before it have ended. It keeps them alive: the
    /// producer's messages point at them.
    open: Mutex<VecDeque<Arc<Batch>>>,
    job: Job,
    /// Events that came to their end: acknowledged or dropped.
    done: AtomicU64,
    failed: AtomicU64,
}

impl State {
    /// `n` of the batch's parts have ended; stores the offsets of the batches that are now through.
    fn ended(&self, batch: &Batch, n: usize) {
        if batch.left.fetch_sub(n, Ordering::AcqRel) != n {
            return;
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        while open.front().is_some_and(|batch| batch.left.load(Ordering::Acquire) == 0) {
            let Some(batch) = open.pop_front() else { break };
            // SAFETY: the list is made, filled and destroyed here; consumer and topic outlive the producer, and with
            // it every delivery report.
            unsafe {
                let list = rd_kafka_topic_partition_list_new(i32::try_from(batch.next.len()).unwrap_or(0));
                for &(partition, next) in &batch.next {
                    (*rd_kafka_topic_partition_list_add(list, self.topic.as_ptr(), partition)).offset = next;
                }
                rd_kafka_offsets_store(self.consumer, list);
                rd_kafka_topic_partition_list_destroy(list);
            }
        }
    }
}

/// librdkafka calls this from the thread that polls the producer, once for each message.
unsafe extern "C" fn delivered(_: *mut rd_kafka_t, message: *const rd_kafka_message_t, opaque: *mut c_void) {
    // SAFETY: `opaque` is the `State` that outlives the producer; `_private` is a batch in its `open`, which holds it
    // until this very message has ended.
    let (state, message, batch) =
        unsafe { (&*opaque.cast::<State>(), &*message, &*(*message)._private.cast::<Batch>()) };
    if message.err as i32 == 0 {
        state.done.fetch_add(1, Ordering::Relaxed);
        state.ended(batch, 1);
    } else {
        // The batch stays open, so that nothing after it is committed; the loop ends with an error.
        state.failed.fetch_add(1, Ordering::Relaxed);
    }
}

/// Copies events in a consumer group of its own.
///
/// # Errors
/// When librdkafka refuses a setting or an event, or nothing happens for half a minute.
pub fn copy(settings: &Settings<'_>) -> anyhow::Result<Copied> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis());
    let group = format!("copy-loop-{}-{now}", std::process::id());
    let consumer = consumer(settings.brokers, &group)?;
    let state = Box::new(State {
        consumer,
        topic: CString::new(settings.input)?,
        open: Mutex::default(),
        job: settings.job,
        done: AtomicU64::new(0),
        failed: AtomicU64::new(0),
    });
    let producer = producer(settings, &state)?;
    let stop = AtomicBool::new(false);
    let handles = Handles { consumer, producer };
    let copied = std::thread::scope(|scope| {
        scope.spawn(|| {
            let handles = &handles;
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: the producer lives until after the scope.
                unsafe { rd_kafka_poll(handles.producer, POLL_MS) };
            }
        });
        let copied = run(&handles, &state, settings.output, settings.events);
        stop.store(true, Ordering::Relaxed);
        copied
    });
    // SAFETY: nobody uses the handles any more; closing the consumer commits what was stored.
    unsafe {
        rd_kafka_destroy(producer);
        rd_kafka_consumer_close(consumer);
        rd_kafka_destroy(consumer);
    }
    copied
}

struct Handles {
    consumer: *mut rd_kafka_t,
    producer: *mut rd_kafka_t,
}

// SAFETY: librdkafka's handles may be used by any number of threads.
unsafe impl Sync for Handles {}

fn run(handles: &Handles, state: &State, output: &str, events: u64) -> anyhow::Result<Copied> {
    let output = CString::new(output)?;
    // SAFETY: the strings live for the calls; the list is destroyed here, queue and topic below.
    let (topic, queue, subscribed) = unsafe {
        let list = rd_kafka_topic_partition_list_new(1);
        rd_kafka_topic_partition_list_add(list, state.topic.as_ptr(), ANY_PARTITION);
        let subscribed = rd_kafka_subscribe(handles.consumer, list);
        rd_kafka_topic_partition_list_destroy(list);
        let topic = rd_kafka_topic_new(handles.producer, output.as_ptr(), ptr::null_mut());
        (topic, rd_kafka_queue_get_consumer(handles.consumer), subscribed)
    };
    ensure!(subscribed as i32 == 0, "subscribe: {subscribed:?}");
    let copied = pump(queue, topic, state, events);
    // SAFETY: both were made above and are not used after this.
    unsafe {
        rd_kafka_queue_destroy(queue);
        rd_kafka_topic_destroy(topic);
    }
    copied
}

fn pump(
    queue: *mut rd_kafka_queue_t,
    topic: *mut rd_kafka_topic_t,
    state: &State,
    events: u64,
) -> anyhow::Result<Copied> {
    let mut messages = vec![ptr::null_mut::<rd_kafka_message_t>(); BATCH];
    let mut written = Vec::new();
    let (mut consumed, mut began, mut moved) = (0, None, (0, Instant::now()));
    loop {
        let done = state.done.load(Ordering::Relaxed);
        ensure!(state.failed.load(Ordering::Relaxed) == 0, "the broker refused events");
        if done >= events {
            break;
        }
        if consumed + done > moved.0 {
            moved = (consumed + done, Instant::now());
        }
        ensure!(moved.1.elapsed() < STALLED, "nothing moved for {STALLED:?} after {done} events");
        if consumed >= events {
            std::thread::sleep(Duration::from_millis(1));
            continue;
        }
        // SAFETY: the buffer has room for `BATCH` messages.
        let n = unsafe { rd_kafka_consume_batch_queue(queue, POLL_MS, messages.as_mut_ptr(), BATCH) };
        let taken = &messages[..usize::try_from(n)?];
        if taken.is_empty() {
            continue;
        }
        began.get_or_insert_with(|| (Instant::now(), cpu_seconds()));
        consumed += forward(taken, topic, state, &mut written)?;
    }
    let (start, cpu) = began.unwrap_or_else(|| (Instant::now(), cpu_seconds()));
    Ok(Copied { events: consumed, seconds: start.elapsed().as_secs_f64(), cpu_seconds: cpu_seconds() - cpu })
}

/// Hands a batch to the producer and frees the messages; gives the number of events in it. `written` is room for the
/// events that are written anew.
fn forward(
    messages: &[*mut rd_kafka_message_t],
    topic: *mut rd_kafka_topic_t,
    state: &State,
    written: &mut Vec<u8>,
) -> anyhow::Result<u64> {
    let mut next: Vec<(i32, i64)> = Vec::new();
    let mut events = 0;
    for &message in messages {
        // SAFETY: librdkafka filled the slot; the message is freed below.
        let message = unsafe { &*message };
        ensure!(message.err as i32 == 0, "consume: {:?}", message.err);
        match next.iter_mut().find(|(partition, _)| *partition == message.partition) {
            Some((_, next)) => *next = message.offset + 1,
            None => next.push((message.partition, message.offset + 1)),
        }
        events += 1;
    }
    let batch = Arc::new(Batch { left: AtomicUsize::new(messages.len() + 1), next });
    state.open.lock().unwrap_or_else(PoisonError::into_inner).push_back(batch.clone());
    let opaque = Arc::as_ptr(&batch).cast_mut().cast::<c_void>();
    for &message in messages {
        // SAFETY: librdkafka filled the slot; the message is freed at the end of this turn.
        let m = unsafe { &*message };
        let payload = match state.job {
            Job::Copy => Some((m.payload, m.len)),
            // SAFETY: the payload has that many bytes and lives as long as the message.
            Job::Price => price(unsafe { std::slice::from_raw_parts(m.payload.cast::<u8>(), m.len) }, written)?
                .then(|| (written.as_mut_ptr().cast::<c_void>(), written.len())),
        };
        match payload {
            Some((bytes, len)) => produce(topic, m, bytes, len, opaque)?,
            None => {
                state.done.fetch_add(1, Ordering::Relaxed);
                state.ended(&batch, 1);
            }
        }
        // SAFETY: nobody has the message any more; the producer has its own copy of key and payload by now.
        unsafe { rd_kafka_message_destroy(message) };
    }
    state.ended(&batch, 1);
    Ok(events)
}

/// Writes the order with its price into `written`; `false` means that it is dropped.
fn price(payload: &[u8], written: &mut Vec<u8>) -> anyhow::Result<bool> {
    let mut order: Order = serde_json::from_slice(payload).context("no order")?;
    if !order.price() {
        return Ok(false);
    }
    written.clear();
    serde_json::to_writer(written, &order)?;
    Ok(true)
}

/// Hands an event to the producer, waiting while its queue is full.
fn produce(
    topic: *mut rd_kafka_topic_t,
    message: &rd_kafka_message_t,
    bytes: *mut c_void,
    len: usize,
    opaque: *mut c_void,
) -> anyhow::Result<()> {
    let (key, key_len) = (message.key, message.key_len);
    // SAFETY: key and payload live for the call; the batch behind `opaque` lives until its delivery reports came.
    while unsafe { rd_kafka_produce(topic, ANY_PARTITION, COPY_PAYLOAD, bytes, len, key, key_len, opaque) } != 0 {
        // SAFETY: no arguments; it tells about the last call on this thread.
        let error = unsafe { rd_kafka_last_error() };
        if error != rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR__QUEUE_FULL {
            bail!("produce: {error:?}");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

fn consumer(brokers: &str, group: &str) -> anyhow::Result<*mut rd_kafka_t> {
    let conf = conf(&[
        ("bootstrap.servers", brokers),
        ("group.id", group),
        ("auto.offset.reset", "earliest"),
        ("enable.auto.offset.store", "false"),
        ("auto.commit.interval.ms", "1000"),
        // The default of 1 s leaves a fast consumer idle each time its queue was full for a moment.
        ("fetch.queue.backoff.ms", "5"),
        ("fetch.wait.max.ms", "50"),
    ])?;
    let consumer = new(rd_kafka_type_t::RD_KAFKA_CONSUMER, conf)?;
    // SAFETY: a live consumer.
    unsafe { rd_kafka_poll_set_consumer(consumer) };
    Ok(consumer)
}

fn producer(settings: &Settings<'_>, state: &State) -> anyhow::Result<*mut rd_kafka_t> {
    let conf = conf(&[
        ("bootstrap.servers", settings.brokers),
        ("compression.type", settings.compression),
        ("enable.idempotence", "true"),
        ("acks", "all"),
        ("linger.ms", "5"),
        ("batch.num.messages", "10000"),
        ("queue.buffering.max.messages", "500000"),
        ("partitioner", "murmur2_random"),
    ])?;
    // SAFETY: a live configuration; the state outlives the producer.
    unsafe {
        rd_kafka_conf_set_opaque(conf, ptr::from_ref(state).cast_mut().cast());
        rd_kafka_conf_set_dr_msg_cb(conf, Some(delivered));
    }
    new(rd_kafka_type_t::RD_KAFKA_PRODUCER, conf)
}

fn conf(settings: &[(&str, &str)]) -> anyhow::Result<*mut rd_kafka_conf_t> {
    let mut error = [0 as c_char; 512];
    // SAFETY: makes a new configuration, which `new` hands to a client.
    let conf = unsafe { rd_kafka_conf_new() };
    for &(key, value) in settings {
        let (key, value) = (CString::new(key)?, CString::new(value)?);
        // SAFETY: the strings live for the call, the buffer has the size that is said.
        let result = unsafe { rd_kafka_conf_set(conf, key.as_ptr(), value.as_ptr(), error.as_mut_ptr(), error.len()) };
        ensure!(result as i32 == 0, "{}", text(&error));
    }
    Ok(conf)
}

fn new(kind: rd_kafka_type_t, conf: *mut rd_kafka_conf_t) -> anyhow::Result<*mut rd_kafka_t> {
    let mut error = [0 as c_char; 512];
    // SAFETY: the client takes the configuration over; the buffer has the size that is said.
    let client = unsafe { rd_kafka_new(kind, conf, error.as_mut_ptr(), error.len()) };
    ensure!(!client.is_null(), "{}", text(&error));
    Ok(client)
}

fn text(buffer: &[c_char; 512]) -> String {
    // SAFETY: the buffer was zeroed, and librdkafka ends what it writes with a zero.
    unsafe { CStr::from_ptr(buffer.as_ptr()) }.to_string_lossy().into_owned()
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    // SAFETY: a zeroed `rusage` is valid, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}
