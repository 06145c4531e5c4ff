//! Publications on their way: which of their events have ended, and who waits for them.
//!
//! An event is known to librdkafka by one machine word, which holds its publication's number and its place in it. So
//! nothing is allocated for an event, and a report that comes late or twice can do no harm.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rdkafka::error::RDKafkaErrorCode;
use tokio::sync::{Notify, oneshot};

use crate::broker::kafka::error;
use crate::broker::kafka::ffi::Report;
use crate::broker::{BrokerError, BrokerErrorKind, PublishReport};

const _: () = assert!(usize::BITS == 64, "a publication's number and a row's share one machine word");

/// How a publication ended.
pub(super) type Ended = Result<PublishReport, BrokerError>;

/// A publication whose events have not all ended.
#[derive(Debug)]
struct Open {
    topic: Arc<str>,
    remaining: u32,
    refused: Vec<(u32, BrokerError)>,
    /// Taken when the end was told.
    ended: Option<oneshot::Sender<Ended>>,
}

#[derive(Debug, Default)]
struct State {
    open: Vec<Option<Open>>,
    free: Vec<u32>,
    /// Why nothing more can be published.
    dead: Option<BrokerError>,
}

/// The publications of one producer that are on their way.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    state: Mutex<State>,
    room: Notify,
}

/// A publication that is being handed over. Dropped half-way, what was not handed over counts as ended.
#[derive(Debug)]
pub(super) struct Ticket {
    deliveries: Arc<Deliveries>,
    number: u32,
    rows: u32,
    /// Rows handed over, or refused on the way.
    pub(super) handed: u32,
}

impl Deliveries {
    /// Begins a publication of `rows` events, at least one.
    ///
    /// # Errors
    /// When nothing more can be published.
    pub(super) fn begin(
        self: &Arc<Self>,
        topic: &Arc<str>,
        rows: u32,
    ) -> Result<(Ticket, oneshot::Receiver<Ended>), BrokerError> {
        let (ended, receiver) = oneshot::channel();
        let open = Open { topic: topic.clone(), remaining: rows, refused: Vec::new(), ended: Some(ended) };
        let mut state = self.lock();
        if let Some(error) = &state.dead {
            return Err(error.clone());
        }
        let number = match state.free.pop() {
            Some(number) => {
                state.open[number as usize] = Some(open);
                number
            }
            None => {
                state.open.push(Some(open));
                u32::try_from(state.open.len() - 1).expect("fewer than 2^32 publications are in flight")
            }
        };
        Ok((Ticket { deliveries: self.clone(), number, rows, handed: 0 }, receiver))
    }

    /// Takes delivery reports.
    pub(super) fn report(&self, reports: impl Iterator<Item = Report>) {
        let mut state = self.lock();
        for Report { opaque, result, bytes } in reports {
            let (number, row) = ((opaque >> 32) as u32, opaque as u32);
            match result {
                Ok(()) => state.end(number, 1),
                Err(code) => state.fail(number, row, code, bytes),
            }
        }
    }

    /// There is room again.
    pub(super) fn ring(&self) {
        self.room.notify_waiters();
    }

    /// Is notified when there is room again.
    pub(super) fn room(&self) -> &Notify {
        &self.room
    }

    /// Nothing more can be published, and nothing that is on its way can be known to have arrived.
    pub(super) fn fail_all(&self, error: &BrokerError) {
        let mut state = self.lock();
        for open in state.open.iter_mut().flatten() {
            if let Some(ended) = open.ended.take() {
                // Where nobody waits any more, nobody needs to know.
                let _ = ended.send(Err(error.clone()));
            }
        }
        state.dead.get_or_insert_with(|| error.clone());
        drop(state);
        self.room.notify_waiters();
    }

    /// Why nothing more can be published.
    pub(super) fn dead(&self) -> Option<BrokerError> {
        self.lock().dead.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// `rows` events of a publication have ended.
    fn end(&mut self, number: u32, rows: u32) {
        let Some(slot) = self.open.get_mut(number as usize) else { return };
        let Some(open) = slot else { return };
        open.remaining = open.remaining.saturating_sub(rows);
        if open.remaining > 0 {
            return;
        }
        if let Some(mut open) = slot.take() {
            self.free.push(number);
            if let Some(ended) = open.ended.take() {
                open.refused.sort_unstable_by_key(|(row, _)| *row);
                let _ = ended.send(Ok(PublishReport { refused: open.refused }));
            }
        }
    }

    /// One event of a publication was not published.
    fn fail(&mut self, number: u32, row: u32, code: RDKafkaErrorCode, bytes: usize) {
        if let Some(Some(open)) = self.open.get_mut(number as usize) {
            let error = not_published(&open.topic, code, bytes);
            if error.kind == BrokerErrorKind::TooLarge {
                open.refused.push((row, error));
            } else if let Some(ended) = open.ended.take() {
                let _ = ended.send(Err(error));
            }
        }
        self.end(number, 1);
    }
}

impl Ticket {
    /// What librdkafka is to know the next row by.
    pub(super) fn opaque(&self) -> usize {
        ((self.number as usize) << 32) | self.handed as usize
    }

    /// The broker will never take the next row.
    pub(super) fn refuse(&mut self, code: RDKafkaErrorCode, bytes: usize) {
        self.deliveries.lock().fail(self.number, self.handed, code, bytes);
        self.handed += 1;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let missing = self.rows - self.handed;
        if missing > 0 {
            let mut state = self.deliveries.lock();
            // Must never look like a whole publication.
            if let Some(Some(open)) = state.open.get_mut(self.number as usize) {
                open.ended = None;
            }
            state.end(self.number, missing);
        }
    }
}

/// Why an event was not published.
pub(super) fn not_published(topic: &str, code: RDKafkaErrorCode, bytes: usize) -> BrokerError {
    let mut error = error::coded(format!("publish to topic {topic}"), code, "");
    match code {
        RDKafkaErrorCode::MessageSizeTooLarge => {
            error.reason = format!(
                "an event of {bytes} bytes is more than the client's `message.max.bytes` or the topic's \
                 `max.message.bytes` allows (where the topic allows less than 1 MB, set `batch.size` below it)"
            );
        }
        RDKafkaErrorCode::PurgeQueue | RDKafkaErrorCode::PurgeInflight => {
            error.reason = "given up at shutdown, not known to have arrived".into();
        }
        _ => {}
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(opaque: usize, result: Result<(), RDKafkaErrorCode>) -> Report {
        Report { opaque, result, bytes: 10 }
    }

    fn begin(deliveries: &Arc<Deliveries>, rows: u32) -> (Vec<usize>, oneshot::Receiver<Ended>) {
        let (mut ticket, ended) = deliveries.begin(&"payments".into(), rows).unwrap();
        let opaques = (0..rows).map(|_| {
            let opaque = ticket.opaque();
            ticket.handed += 1;
            opaque
        });
        (opaques.collect(), ended)
    }

    #[test]
    fn acknowledged_when_all_have_ended_in_any_order() {
        let deliveries = Arc::new(Deliveries::default());
        let (one, mut one_ended) = begin(&deliveries, 2);
        let (two, mut two_ended) = begin(&deliveries, 3);
        let too_large = Err(RDKafkaErrorCode::MessageSizeTooLarge);
        deliveries.report([report(two[2], too_large), report(one[1], Ok(())), report(two[0], too_large)].into_iter());
        assert!(one_ended.try_recv().is_err() && two_ended.try_recv().is_err());
        deliveries.report([report(one[0], Ok(())), report(two[1], Ok(()))].into_iter());
        assert!(one_ended.try_recv().unwrap().unwrap().refused.is_empty());
        let refused = two_ended.try_recv().unwrap().unwrap().refused;
        assert_eq!(refused.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [0, 2]);
        assert_eq!(refused[0].1.kind, BrokerErrorKind::TooLarge);
        assert!(deliveries.lock().open.iter().all(Option::is_none));
    }

    #[test]
    fn any_other_failure_fails_the_publication() {
        let deliveries = Arc::new(Deliveries::default());
        let (rows, mut ended) = begin(&deliveries, 2);
        deliveries.report([report(rows[0], Err(RDKafkaErrorCode::TopicAuthorizationFailed))].into_iter());
        assert_eq!(ended.try_recv().unwrap().unwrap_err().kind, BrokerErrorKind::Denied);
        deliveries.report([report(rows[1], Ok(()))].into_iter());
        assert!(deliveries.lock().open.iter().all(Option::is_none));
    }

    #[test]
    fn a_purged_event_is_never_acknowledged() {
        let deliveries = Arc::new(Deliveries::default());
        let (rows, mut ended) = begin(&deliveries, 1);
        deliveries.report([report(rows[0], Err(RDKafkaErrorCode::PurgeInflight))].into_iter());
        assert!(ended.try_recv().unwrap().is_err());
    }

    #[test]
    fn a_publication_that_is_given_up_half_way_is_not_acknowledged() {
        let deliveries = Arc::new(Deliveries::default());
        let (mut ticket, mut ended) = deliveries.begin(&"payments".into(), 3).unwrap();
        let first = ticket.opaque();
        ticket.handed += 1;
        drop(ticket);
        deliveries.report([report(first, Ok(()))].into_iter());
        assert!(matches!(ended.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
        assert!(deliveries.lock().open.iter().all(Option::is_none));
    }

    #[test]
    fn nothing_begins_after_the_end() {
        let deliveries = Arc::new(Deliveries::default());
        let (_, mut ended) = begin(&deliveries, 1);
        let error = not_published("payments", RDKafkaErrorCode::Fatal, 0);
        deliveries.fail_all(&error);
        assert!(ended.try_recv().unwrap().is_err());
        assert!(deliveries.begin(&"payments".into(), 1).is_err());
    }
}
