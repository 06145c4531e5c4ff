//! Which of the brokers a connection, an input or a target is for.

use super::Validator;
use crate::config::error::{Kind, Mistake, Span};
use crate::config::read::Field;

/// A kind of broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Broker {
    Kafka,
    Nats,
}

impl Broker {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kafka => "Kafka",
            Self::Nats => "NATS",
        }
    }
}

/// What is written under `kafka` or `nats`.
pub(super) enum Either<'a, K, N> {
    Kafka(&'a K),
    Nats(&'a N),
}

impl Validator<'_> {
    /// What is written, under one key of the two.
    pub(super) fn either<'a, K, N>(
        &mut self,
        kafka: &'a Field<K>,
        nats: &'a Field<N>,
        of: &str,
        sample: &str,
    ) -> Option<Either<'a, K, N>> {
        let none = (format!("{of} names no broker"), format!("write `{sample}`, or the same for `nats`"));
        if !self.one_way([&kafka.key, &nats.key], &kafka.span, none, &format!("{of} names two brokers")) {
            return None;
        }
        kafka.value.as_ref().map(Either::Kafka).or(nats.value.as_ref().map(Either::Nats))
    }

    /// Whether one of these keys is written, at most. When there is none, the message and the help are `none`.
    pub(super) fn one_way<const N: usize>(
        &mut self,
        keys: [&Option<Span>; N],
        within: &Span,
        (none, help): (String, String),
        two: &str,
    ) -> bool {
        let mut written = keys.into_iter().flatten();
        let Some(one) = written.next() else {
            let mistake = Mistake::at(Kind::OneBroker, within.clone(), none).label("in here");
            self.mistakes.push(mistake.help(help));
            return false;
        };
        // Where both stand for a key that is mistaken, that was said.
        if let Some(other) = written.find(|other| *other != one) {
            let mistake = Mistake::at(Kind::OneBroker, other.clone(), two).other(one.clone(), "and here");
            self.mistakes.push(mistake.help("delete one of them"));
            return false;
        }
        true
    }

    /// Which kind of broker a connection reaches, as far as it says.
    pub(super) fn broker_of(&self, name: &str) -> Option<Broker> {
        let connection = self.connection(name)?;
        match (connection.kafka.is_written(), connection.nats.is_written()) {
            (true, false) => Some(Broker::Kafka),
            (false, true) => Some(Broker::Nats),
            _ => None,
        }
    }
}
