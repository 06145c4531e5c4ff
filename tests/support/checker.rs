//! Compares what went in with what came out: what was lost, doubled, never sent, or out of order. Pure.
//!
//! The names follow Jepsen's: *lost* went in and never came out, *doubled* came out more than once, *unseen* came out
//! and never went in, *reordered* came out behind one that went in later with the same key.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// One event as the checker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen<K, I> {
    /// What its order is kept by.
    pub(crate) key: K,
    /// What it is known by; no two events that went in share it.
    pub(crate) id: I,
}

/// What a run did to the events. Every list is in the order of the input, or of the output where the input lacks it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Report<I> {
    /// How many went in.
    pub(crate) sent: usize,
    /// How many came out, doubled ones included.
    pub(crate) received: usize,
    /// Went in and never came out.
    pub(crate) lost: Vec<I>,
    /// Came out more than once; how often too often.
    pub(crate) doubled: Vec<(I, usize)>,
    /// Came out and never went in.
    pub(crate) unseen: Vec<I>,
    /// Came out first behind an event of the same key that went in later.
    pub(crate) reordered: Vec<I>,
}

impl<I> Report<I> {
    /// How many came out too often.
    pub(crate) fn too_many(&self) -> usize {
        self.doubled.iter().map(|(_, times)| times).sum()
    }
}

impl<I: std::fmt::Debug> Report<I> {
    /// At least once: nothing lost, nothing invented, and the first coming of each event in order.
    ///
    /// # Errors
    /// Otherwise, with counts and examples.
    pub(crate) fn at_least_once(&self) -> Result<(), String> {
        if self.lost.is_empty() && self.unseen.is_empty() && self.reordered.is_empty() {
            return Ok(());
        }
        Err(self.describe())
    }

    /// Exactly once: [`at_least_once`](Self::at_least_once), and nothing doubled.
    ///
    /// # Errors
    /// Otherwise, with counts and examples.
    pub(crate) fn exactly_once(&self) -> Result<(), String> {
        self.at_least_once()?;
        if self.doubled.is_empty() { Ok(()) } else { Err(self.describe()) }
    }

    /// The counts, and the first few of each kind.
    pub(crate) fn describe(&self) -> String {
        let brief = |id: &I| format!("{id:?}").chars().take(40).collect::<String>();
        let few = |list: &[I]| list.iter().take(5).map(brief).collect::<Vec<_>>().join(", ");
        let doubled: Vec<String> =
            self.doubled.iter().take(5).map(|(id, times)| format!("{} (+{times})", brief(id))).collect();
        format!(
            "sent {}, received {}, lost {} [{}], doubled {} [{}], unseen {} [{}], reordered {} [{}]",
            self.sent,
            self.received,
            self.lost.len(),
            few(&self.lost),
            self.too_many(),
            doubled.join(", "),
            self.unseen.len(),
            few(&self.unseen),
            self.reordered.len(),
            few(&self.reordered),
        )
    }
}

/// Compares. `output` holds one list for each place whose order counts, such as a partition; a key's order is checked
/// within each of them.
pub(crate) fn compare<K, I>(input: &[Seen<K, I>], output: &[Vec<Seen<K, I>>]) -> Report<I>
where
    K: Clone + Eq + Hash,
    I: Clone + Eq + Hash,
{
    let place: HashMap<&I, usize> = input.iter().enumerate().map(|(at, event)| (&event.id, at)).collect();
    assert_eq!(place.len(), input.len(), "two events of the input share an id");
    let mut times = vec![0_usize; input.len()];
    let mut unseen = Vec::new();
    let mut reordered = BTreeMap::new();
    for list in output {
        let mut furthest: HashMap<&K, usize> = HashMap::new();
        for event in list {
            let Some(&at) = place.get(&event.id).filter(|&&at| input[at].key == event.key) else {
                unseen.push(event.id.clone());
                continue;
            };
            times[at] += 1;
            // A repetition may lie behind later events; only the first coming has to be in order.
            let last = furthest.entry(&event.key).or_insert(at);
            if at < *last && times[at] == 1 {
                reordered.insert(at, event.id.clone());
            }
            *last = at.max(*last);
        }
    }
    let by_times = |wanted: fn(usize) -> bool| {
        times
            .iter()
            .zip(input)
            .filter(move |(times, _)| wanted(**times))
            .map(|(times, event)| (event.id.clone(), *times))
    };
    Report {
        sent: input.len(),
        received: output.iter().map(Vec::len).sum(),
        lost: by_times(|times| times == 0).map(|(id, _)| id).collect(),
        doubled: by_times(|times| times > 1).map(|(id, times)| (id, times - 1)).collect(),
        unseen,
        reordered: reordered.into_values().collect(),
    }
}
