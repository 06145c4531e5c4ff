//! Atomic batches: how a publication is cut, and what is refused together. Pure.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::Message;
use crate::broker::nats::mapping::Subject;
use crate::broker::pending::Pending;
use crate::broker::{BrokerError, BrokerErrorKind};

/// Messages that are stored as a whole or not at all; with others that wait too and fit, as one.
pub(super) struct Batch {
    pub(super) work: Arc<Pending>,
    /// What their subjects are made of.
    pub(super) target: Arc<Subject>,
    pub(super) messages: Vec<Message>,
    pub(super) _room: [OwnedSemaphorePermit; 2],
}

/// A part of a publication.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// It fits into one batch.
    Fits(Range<usize>),
    /// What one event became, and more than a batch holds.
    TooMany(Range<usize>),
}

/// Cuts a publication, of which these are the causes in order, into batches of at most `most`. Events of one cause that
/// follow each other stay together.
pub(super) fn cut(causes: &[u32], most: usize) -> Vec<Cut> {
    let mut cuts = Vec::new();
    let (mut begin, mut end) = (0, 0);
    for run in causes.chunk_by(|one, other| one == other) {
        if run.len() > most || end - begin + run.len() > most {
            cuts.extend((begin < end).then_some(Cut::Fits(begin..end)));
            begin = end;
        }
        end += run.len();
        if run.len() > most {
            cuts.push(Cut::TooMany(begin..end));
            begin = end;
        }
    }
    cuts.extend((begin < end).then_some(Cut::Fits(begin..end)));
    cuts
}

/// Takes messages out that share their cause with one that is refused: what one event became is stored as a whole, or
/// not at all. What is taken out is refused.
pub(super) fn take_out(work: &Pending, messages: &mut Vec<Message>, causes: &BTreeSet<u32>) {
    if causes.is_empty() {
        return;
    }
    messages.retain(|message| {
        let stays = !causes.contains(&message.cause);
        if !stays {
            let action = format!("publish to {}", message.subject);
            let reason =
                "another event that was made of the same one is refused, and both are stored or none".to_owned();
            work.refuse(message.at, BrokerError { kind: BrokerErrorKind::Refused, action, reason });
        }
        stays
    });
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cuts_are_between_causes() {
        assert_eq!(cut(&[], 3), []);
        assert_eq!(cut(&[0, 1, 2], 3), [Cut::Fits(0..3)]);
        assert_eq!(cut(&[0, 1, 2, 3], 3), [Cut::Fits(0..3), Cut::Fits(3..4)]);
        assert_eq!(cut(&[0, 1, 1, 2, 2], 3), [Cut::Fits(0..3), Cut::Fits(3..5)]);
        assert_eq!(cut(&[0, 1, 1, 1, 1, 2], 3), [Cut::Fits(0..1), Cut::TooMany(1..5), Cut::Fits(5..6)]);
        assert_eq!(cut(&[1, 1, 1, 1], 3), [Cut::TooMany(0..4)]);
    }

    proptest! {
        #[test]
        fn every_event_is_in_one_cut_and_causes_stay_together(
            runs in prop::collection::vec(1..6_usize, 0..40),
            most in 1..6_usize,
        ) {
            let of = |(cause, run): (usize, &usize)| std::iter::repeat_n(u32::try_from(cause).unwrap(), *run);
            let causes: Vec<u32> = runs.iter().enumerate().flat_map(of).collect();
            let mut next = 0;
            for cut in cut(&causes, most) {
                let range = match cut {
                    Cut::Fits(range) => {
                        prop_assert!(range.len() <= most);
                        range
                    }
                    Cut::TooMany(range) => {
                        prop_assert!(range.len() > most && causes[range.clone()].iter().all(|it| *it == causes[next]));
                        range
                    }
                };
                prop_assert!(range.start == next && !range.is_empty());
                next = range.end;
                prop_assert!(next == causes.len() || causes[next - 1] != causes[next]);
            }
            prop_assert_eq!(next, causes.len());
        }
    }
}
