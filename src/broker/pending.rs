//! A publication on its way: how many of its events have not ended, which were refused, who waits.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::broker::{BrokerError, PublishReport};

/// How a publication ended.
pub(in crate::broker) type Ended = Result<PublishReport, BrokerError>;

#[derive(Debug)]
struct State {
    remaining: u32,
    refused: Vec<(u32, BrokerError)>,
    /// Taken when the end was told.
    ended: Option<oneshot::Sender<Ended>>,
}

/// See the module.
#[derive(Debug)]
pub(in crate::broker) struct Pending(Mutex<State>);

impl Pending {
    /// A publication of `rows` events, at least one.
    pub(in crate::broker) fn new(rows: u32) -> (Arc<Self>, oneshot::Receiver<Ended>) {
        let (ended, receiver) = oneshot::channel();
        let state = State { remaining: rows, refused: Vec::new(), ended: Some(ended) };
        (Arc::new(Self(Mutex::new(state))), receiver)
    }

    /// `rows` of its events were acknowledged.
    pub(in crate::broker) fn acknowledge(&self, rows: u32) {
        self.lock().end(rows);
    }

    /// The broker will never take the event at `row`.
    pub(in crate::broker) fn refuse(&self, row: u32, error: BrokerError) {
        let mut state = self.lock();
        state.refused.push((row, error));
        state.end(1);
    }

    /// It is not known to have arrived, and never will be.
    pub(in crate::broker) fn fail(&self, error: &BrokerError) {
        if let Some(ended) = self.lock().ended.take() {
            // Where nobody waits any more, nobody needs to know.
            let _ = ended.send(Err(error.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn end(&mut self, rows: u32) {
        self.remaining = self.remaining.saturating_sub(rows);
        if self.remaining == 0
            && let Some(ended) = self.ended.take()
        {
            let mut refused = std::mem::take(&mut self.refused);
            refused.sort_unstable_by_key(|(row, _)| *row);
            let _ = ended.send(Ok(PublishReport { refused }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::BrokerErrorKind;

    fn error() -> BrokerError {
        BrokerError { kind: BrokerErrorKind::TooLarge, action: "publish".into(), reason: "large".into() }
    }

    #[test]
    fn ends_when_every_event_has_ended() {
        let (pending, mut ended) = Pending::new(4);
        pending.refuse(3, error());
        pending.acknowledge(1);
        pending.refuse(1, error());
        assert!(ended.try_recv().is_err());
        pending.acknowledge(1);
        let refused = ended.try_recv().unwrap().unwrap().refused;
        assert_eq!(refused.iter().map(|(row, _)| *row).collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_failure_is_told_once_and_at_once() {
        let (pending, mut ended) = Pending::new(2);
        pending.acknowledge(1);
        pending.fail(&error());
        assert!(ended.try_recv().unwrap().is_err());
        pending.acknowledge(1);
        pending.fail(&error());
    }
}
