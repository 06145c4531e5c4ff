use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::spec::NatsKey;
use crate::spec::StartOffset;

fn spec() -> NatsSourceSpec {
    NatsSourceSpec {
        connection: "main".into(),
        stream: "ORDERS".into(),
        subjects: Vec::new(),
        durable: "d".into(),
        start: StartOffset::Earliest,
        ack_wait: Duration::from_secs(30),
        key: NatsKey::Header,
        subject_header: None,
    }
}

fn message(stream: u64, consumer: u64) -> Message {
    Message {
        subject: "orders".into(),
        reply: Some(format!("$JS.ACK.ORDERS.d.1.{stream}.{consumer}.0.0").into()),
        payload: Default::default(),
        headers: None,
        status: None,
        description: None,
        length: 0,
    }
}

/// A consumer as the server has it: with a filter, so that not every number of the stream is one of it.
struct Server {
    numbers: Vec<u64>,
    floor: u64,
    /// Delivered since it was set back.
    delivered: usize,
    at: usize,
}

impl Server {
    fn set_back(&mut self) -> u64 {
        self.delivered = 0;
        self.at = self.numbers.iter().filter(|number| **number <= self.floor).count();
        self.floor
    }

    fn deliver(&mut self) -> Option<Message> {
        let number = *self.numbers.get(self.at)?;
        self.at += 1;
        self.delivered += 1;
        Some(message(number, self.delivered as u64))
    }
}

proptest! {
    /// Whatever is lost on the way: each message is taken once, in order, and nothing is acknowledged that did not come.
    #[test]
    fn messages_are_taken_once_and_in_order(
        gaps in prop::collection::vec(1..4_u64, 1..40),
        steps in prop::collection::vec(0..6_u8, 1..200),
    ) {
        let spec = spec();
        let numbers: Vec<u64> = gaps.iter().scan(0, |at, gap| { *at += gap; Some(*at) }).collect();
        let mut server = Server { numbers: numbers.clone(), floor: 0, delivered: 0, at: 0 };
        let mut received = Received::new(&spec);
        let mut taken: Vec<u64> = Vec::new();
        received.expect_anew(server.set_back());
        let mut ended = 0;
        let mut run = |step: u8, server: &mut Server, received: &mut Received<'_>, taken: &mut Vec<u64>| {
            match step {
                0..=2 => if let Some(message) = server.deliver()
                    && !received.take(message, None)
                {
                    received.expect_anew(server.set_back());
                },
                // Lost with the connection, or for no reason.
                3 => { server.deliver(); }
                4 => received.expect_anew(server.set_back()),
                // Half of what was taken has ended, and is acknowledged.
                _ => {
                    ended = (ended + taken.len()).div_ceil(2);
                    let next = taken.get(ended).map_or(received.last() + 1, |next| *next);
                    if let Some((_, last)) = received.ended(next, true) {
                        assert!(last < next && taken.contains(&last));
                        server.floor = server.floor.max(last);
                        received.acknowledged(last);
                    }
                }
            }
            taken.extend(received.waiting.drain(..).map(|(_, delivered)| delivered.stream));
        };
        for step in steps {
            run(step, &mut server, &mut received, &mut taken);
            prop_assert!(taken.is_sorted() && taken == numbers[..taken.len()]);
            prop_assert!(taken.last().is_none_or(|last| server.floor <= *last));
        }
        run(4, &mut server, &mut received, &mut taken);
        for _ in 0..=numbers.len() {
            run(0, &mut server, &mut received, &mut taken);
        }
        prop_assert_eq!(&taken, &numbers);
        prop_assert!(!received.lacks() && received.old().is_empty());
        let last = *numbers.last().unwrap();
        prop_assert_eq!(received.owes(last + 1), server.floor < last);
    }
}

#[test]
fn what_lies_behind_the_end_is_left() {
    let spec = spec();
    let mut received = Received::new(&spec);
    assert!(received.take(message(1, 1), Some(5)) && received.take(message(7, 2), Some(5)));
    assert_eq!((received.waiting(), received.last()), (1, 5));
    assert_eq!(received.ended(8, true).map(|(replies, last)| (replies.len(), last)), Some((1, 1)));
}

#[test]
fn what_stays_is_kept_in_progress() {
    let spec = spec();
    let mut received = Received::new(&spec);
    received.take(message(1, 1), None);
    assert!(received.old().is_empty());
    received.take(message(2, 2), None);
    assert_eq!(received.old().len(), 1);
    assert_eq!(received.old().len(), 2);
    received.acknowledged(1);
    assert_eq!(received.old().len(), 1);
}
