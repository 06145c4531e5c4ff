//! The broker inside the process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use fluxmill::broker::memory::{MemoryBroker, MemoryEvent, MemoryLimits};
use fluxmill::broker::{AnyDriver, AnyProducer, AnySink, AnySource, BrokerError};
use fluxmill::delivery::Tracker;
use fluxmill::spec::{KafkaSourceSpec, StartOffset};

use crate::support::suite::Case;
use crate::world::{Event, Needs, Reader, Stored, World};

/// The largest event, in bytes.
const LARGEST: usize = 100_000;

/// See the module.
pub(crate) struct MemoryWorld {
    broker: MemoryBroker,
    needs: Needs,
}

impl MemoryWorld {
    pub(crate) fn start(_: &Case, _: &str, needs: Needs) -> anyhow::Result<Box<dyn World>> {
        let limits = MemoryLimits { event_bytes: LARGEST, ..MemoryLimits::default() };
        Ok(Box::new(Self { broker: MemoryBroker::new(limits), needs }))
    }
}

impl World for MemoryWorld {
    fn place(&self, name: &str, partitions: u16) -> anyhow::Result<String> {
        self.broker.create_topic(name, partitions)?;
        if self.needs == Needs::Denial {
            self.broker.deny(name);
        }
        Ok(name.to_owned())
    }

    fn feed(&self, place: &str, events: &[Event]) -> anyhow::Result<()> {
        let stored = |event: &Event| {
            let Event { key, value, headers, timestamp } = event.clone();
            MemoryEvent { key, value, headers, timestamp }
        };
        Ok(self.broker.publish(place, events.iter().map(stored))?)
    }

    fn source(&self, place: &str, reader: &Reader) -> Result<AnySource, BrokerError> {
        let spec = KafkaSourceSpec {
            connection: "main".into(),
            topics: vec![place.to_owned()],
            group: reader.name.into(),
            instance: None,
            start: StartOffset::Earliest,
        };
        Ok(AnySource::Memory(self.broker.source(&spec)))
    }

    fn producer(&self, _: &str) -> Result<(AnyProducer, Option<AnyDriver>), BrokerError> {
        Ok((AnyProducer::Memory(self.broker.producer()), None))
    }

    fn sink(&self, producer: &AnyProducer, place: &str, _: &Arc<Tracker>) -> AnySink {
        match producer {
            AnyProducer::Memory(producer) => AnySink::Memory(producer.sink(place)),
            other => panic!("no producer of this world: {other:?}"),
        }
    }

    fn stored(&self, place: &str) -> anyhow::Result<Vec<Stored>> {
        let read = self.broker.read(place)?.into_iter();
        let stored = |record: fluxmill::broker::memory::MemoryRecord| Stored {
            partition: record.partition,
            key: record.event.key.clone(),
            value: record.event.value.clone(),
        };
        Ok(read.map(stored).collect())
    }

    fn confirmed(&self, place: &str, reader: &Reader) -> anyhow::Result<BTreeMap<i32, u64>> {
        let committed = self.broker.committed(reader.name, place).into_iter();
        committed.map(|(partition, offset)| Ok((partition, u64::try_from(offset)?))).collect()
    }

    fn taken(&self, _: &str, reader: &Reader) -> anyhow::Result<Option<u64>> {
        Ok(Some(self.broker.fetched(reader.name)))
    }

    fn ahead_max(&self) -> u64 {
        // Three batches, in the intake.
        300
    }

    fn largest(&self) -> usize {
        LARGEST
    }

    fn patience(&self) -> Duration {
        // It waits for ever: the case does not apply.
        Duration::ZERO
    }

    fn go_away(&self) -> anyhow::Result<()> {
        self.broker.go_away();
        Ok(())
    }

    fn come_back(&self) -> anyhow::Result<()> {
        self.broker.come_back();
        Ok(())
    }
}
