//! The lanes of a pipeline as its source sees them: to which of them a row goes. Here order is kept or given up, since
//! the rows of one lane are run and published one after the other, and those of two lanes are not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Bell, Full, Intake, Writer};
use crate::delivery::Tracker;
use crate::event::Origin;
use crate::spec::{BatchLimits, Order};

/// Bytes of batches that may wait for one lane where its rows share partitions with others': while a slow key holds
/// its lane, the others go on until so much waits there.
const QUEUE_BYTES: usize = 4 << 20;

/// The lanes of one source, at least one.
#[derive(Clone, Debug)]
pub struct Lanes {
    intakes: Arc<[Arc<Intake>]>,
    order: Order,
    /// Whose turn is next, where a row may go to any lane.
    next: Arc<AtomicUsize>,
}

/// A source's hold on the lanes while it deals a run of rows of one partition. Hold it for one run, not longer: the
/// lanes wait meanwhile.
pub struct Run<'a> {
    lanes: &'a Lanes,
    home: usize,
    writers: Vec<Option<Writer<'a>>>,
}

impl Lanes {
    /// `count` lanes whose batches keep to `limits`, and to which rows are dealt so that `order` can be kept. The bell
    /// is rung when a lane has room again after it refused a row.
    pub fn new(count: usize, order: Order, limits: BatchLimits, tracker: &Arc<Tracker>, bell: &Arc<Bell>) -> Self {
        // What waits belongs to the transaction that is cut off next, which must not grow long by it.
        let queue = if order == Order::Key && tracker.sets().is_none() { QUEUE_BYTES } else { 0 };
        let intake = |_| Arc::new(Intake::new(limits, tracker.clone(), bell.clone()).queueing(queue));
        Self { intakes: (0..count).map(intake).collect(), order, next: Arc::default() }
    }

    /// Where each lane takes its batches from.
    pub fn intakes(&self) -> &[Arc<Intake>] {
        &self.intakes
    }

    /// What is kept in order.
    pub fn order(&self) -> Order {
        self.order
    }

    /// No row will come any more. What is there can still be taken.
    pub fn close(&self) {
        self.intakes.iter().for_each(|intake| intake.close());
    }

    /// What is there goes as soon as its lane is free, without waiting for more.
    pub fn hurry(&self) {
        self.intakes.iter().for_each(|intake| intake.hurry());
    }

    /// As [`Lanes::hurry`], for rows of partitions at home in this lane.
    pub fn hurry_from(&self, home: usize) {
        match self.order {
            Order::Partition => self.intakes[home].hurry(),
            Order::Key | Order::None => self.hurry(),
        }
    }

    /// Takes hold of the lanes for a run of rows of a partition at home in this lane.
    pub fn run(&self, home: usize) -> Run<'_> {
        let home = match self.order {
            Order::Partition | Order::Key => home,
            Order::None => self.next.fetch_add(1, Ordering::Relaxed) % self.intakes.len(),
        };
        Run { lanes: self, home, writers: (0..self.intakes.len()).map(|_| None).collect() }
    }
}

impl Run<'_> {
    /// Appends one row to the lane that it belongs to: its partition's; or its key's, if it has one; or any that has
    /// room.
    ///
    /// # Errors
    /// [`Full`] when there is no room for it; append it again after the bell was rung, and none behind it before.
    #[inline(always)]
    pub fn append<'h>(
        &mut self,
        origin: Origin,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp: i64,
        headers: impl Iterator<Item = (&'h [u8], Option<&'h [u8]>)> + Clone,
    ) -> Result<(), Full> {
        let Self { lanes, home, writers } = self;
        let (count, mut tried) = (lanes.intakes.len(), 1);
        loop {
            let lane = match (lanes.order, key) {
                (Order::Key, Some(key)) => lane_of(key, count),
                _ => *home,
            };
            let writer = writers[lane].get_or_insert_with(|| lanes.intakes[lane].writer());
            let appended = writer.append(origin, key, value, timestamp, headers.clone());
            if appended.is_ok() || lanes.order != Order::None || tried == count {
                return appended;
            }
            tried += 1;
            *home = (*home + 1) % count;
        }
    }
}

/// The lane of a key. Not by the hash that Kafka's clients choose a partition by: the keys of one partition have that
/// much in common, and would crowd in few lanes.
fn lane_of(key: &[u8], lanes: usize) -> usize {
    let scaled = u64::from(crc32c::crc32c(key)) * lanes as u64;
    (scaled >> u32::BITS) as usize
}

#[cfg(test)]
mod tests;
