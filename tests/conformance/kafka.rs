//! Kafka: a real broker, or librdkafka's mock cluster, by either client.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use fluxmill::broker::kafka::mock::MockKafka;
use fluxmill::broker::kafka::{KafkaProducer, KafkaSource, admin};
use fluxmill::broker::{AnyDriver, AnyProducer, AnySink, AnySource, BrokerError};
use fluxmill::delivery::Tracker;
use fluxmill::spec::{
    ColumnarSettings, KafkaClient, KafkaConnection, KafkaSourceSpec, SaslMechanism, SaslSpec, Secret, StartOffset,
};
use rdkafka::types::RDKafkaRespErr;

use crate::support::client::{Client, Record};
use crate::support::kafka::{GUEST, Kafka, PASSWORD};
use crate::support::suite::Case;
use crate::world::{Event, Needs, Reader, Stored, World};

/// The largest event that the topics here take; about, since Kafka counts what is around it.
const LARGEST: usize = 100_000;
/// The mock waits for a second less than this whenever a member comes or goes; a reader may be silent for so long.
const MOCK_SESSION: Duration = Duration::from_secs(4);
/// How long it may take to ask for the settings of a topic.
const ASK: Duration = Duration::from_secs(30);

/// Which client of Fluxmill's moves events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    Columnar,
    Librdkafka,
}

enum Broker {
    /// Of all cases.
    Shared(#[expect(dead_code, reason = "lives as long as its last case")] Arc<Kafka>),
    /// Of this case, which kills it.
    Own(RefCell<Kafka>),
    Mock(MockKafka),
}

/// See the module.
pub(crate) struct KafkaWorld {
    broker: Broker,
    /// Before the names of topics and groups: cases share a broker.
    prefix: String,
    connection: KafkaConnection,
    client: Client,
    needs: Needs,
}

impl KafkaWorld {
    /// On a real broker.
    pub(crate) fn real(case: &Case, name: &str, needs: Needs, by: By) -> anyhow::Result<Box<dyn World>> {
        let mut sasl = None;
        let (broker, plain, brokers) = match needs {
            Needs::Nothing => {
                let kafka = case.kafka()?;
                let brokers = kafka.brokers();
                (Broker::Shared(kafka), brokers.clone(), brokers)
            }
            Needs::Outage => {
                let kafka = case.own_kafka()?;
                let brokers = kafka.brokers();
                (Broker::Own(RefCell::new(kafka)), brokers.clone(), brokers)
            }
            Needs::Denial => {
                let kafka = case.secure_kafka()?;
                let (username, password) = (GUEST.to_owned(), Secret(PASSWORD.to_owned()));
                sasl = Some(SaslSpec::Password { mechanism: SaslMechanism::Plain, username, password });
                let (plain, brokers) = (kafka.brokers(), kafka.sasl_brokers());
                (Broker::Shared(kafka), plain, brokers)
            }
        };
        Ok(Self::boxed(broker, by, name, needs, [&plain, &brokers], sasl))
    }

    /// On a mock cluster of its own.
    pub(crate) fn mock(_: &Case, name: &str, needs: Needs, by: By) -> anyhow::Result<Box<dyn World>> {
        let mock = MockKafka::start(1)?;
        let address = mock.address().to_owned();
        Ok(Self::boxed(Broker::Mock(mock), by, name, needs, [&address, &address], None))
    }

    fn boxed(
        broker: Broker,
        by: By,
        name: &str,
        needs: Needs,
        [plain, brokers]: [&str; 2],
        sasl: Option<SaslSpec>,
    ) -> Box<dyn World> {
        let mut connection = KafkaConnection {
            brokers: vec![brokers.to_owned()],
            tls: None,
            sasl,
            client: KafkaClient::Librdkafka,
            properties: BTreeMap::new(),
        };
        let mut settings = ColumnarSettings::default();
        if matches!(broker, Broker::Mock(_)) {
            // The mock answers an idle fetch only at the end of its wait, and has no bound of its own for events.
            let properties = [("fetch.wait.max.ms", "5".to_owned()), ("message.max.bytes", LARGEST.to_string())];
            connection.properties.extend(properties.map(|(name, value)| (name.to_owned(), value)));
            (settings.fetch_wait, settings.message_bytes_max) = (Duration::from_millis(5), LARGEST);
        }
        if by == By::Columnar {
            connection.client = KafkaClient::Columnar(settings);
        }
        let prefix = format!("{by:?}.{name}").to_lowercase();
        Box::new(Self { broker, prefix, connection, client: Client::new(plain), needs })
    }

    fn group(&self, reader: &Reader) -> String {
        format!("{}.{}", self.prefix, reader.name)
    }
}

impl World for KafkaWorld {
    fn place(&self, name: &str, partitions: u16) -> anyhow::Result<String> {
        let topic = format!("{}.{name}", self.prefix);
        match &self.broker {
            Broker::Mock(mock) => {
                mock.create_topic(&topic, partitions)?;
                if let (Needs::Denial, Some(cluster)) = (self.needs, mock.cluster()) {
                    let denied = RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED;
                    cluster.topic_error(&topic, denied)?;
                }
            }
            Broker::Shared(_) | Broker::Own(_) => {
                let settings = [("max.message.bytes", LARGEST.to_string())];
                let settings = settings.each_ref().map(|(name, value)| (*name, value.as_str()));
                // The cases with odd events have larger ones.
                let settings = if name == "large" { &settings[..] } else { &[] };
                self.client.create_topic(&topic, i32::from(partitions), settings)?;
            }
        }
        Ok(topic)
    }

    fn feed(&self, place: &str, events: &[Event]) -> anyhow::Result<()> {
        let record = |event: &Event| Record {
            key: event.key.clone(),
            value: event.value.clone(),
            timestamp: Some(event.timestamp),
            ..Record::default()
        };
        self.client.produce(place, events.iter().map(record))
    }

    fn source(&self, place: &str, reader: &Reader) -> Result<AnySource, BrokerError> {
        let mut connection = self.connection.clone();
        let is_mock = matches!(self.broker, Broker::Mock(_));
        let patience = reader.patience.or_else(|| is_mock.then_some(MOCK_SESSION));
        let mut set = |name: &str, value: String| connection.properties.insert(name.to_owned(), value);
        if let Some(patience) = patience {
            set("session.timeout.ms", patience.as_millis().to_string());
            set("heartbeat.interval.ms", "100".to_owned());
        }
        let spec = KafkaSourceSpec {
            connection: "main".into(),
            topics: vec![place.to_owned()],
            group: self.group(reader),
            instance: None,
            start: StartOffset::Earliest,
        };
        KafkaSource::new(&connection, &spec, "conformance").map(AnySource::Kafka)
    }

    fn producer(&self, place: &str) -> Result<(AnyProducer, Option<AnyDriver>), BrokerError> {
        let mut connection = self.connection.clone();
        if !matches!(self.broker, Broker::Mock(_)) && self.needs != Needs::Denial {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let runtime = runtime.expect("a runtime");
            // As the product does it.
            connection = runtime.block_on(admin::with_fitting_batches(&connection, &[place], ASK));
        }
        let (producer, driver) = KafkaProducer::connect(&connection, "conformance")?;
        Ok((AnyProducer::Kafka(producer), driver.map(|driver| AnyDriver::Kafka(Box::new(driver)))))
    }

    fn sink(&self, producer: &AnyProducer, place: &str, _: &Arc<Tracker>) -> AnySink {
        match producer {
            AnyProducer::Kafka(producer) => AnySink::Kafka(producer.sink(place)),
            other => panic!("no producer of this world: {other:?}"),
        }
    }

    fn stored(&self, place: &str) -> anyhow::Result<Vec<Stored>> {
        let read = self.client.read(place)?.into_iter();
        Ok(read.map(|event| Stored { partition: event.partition, key: event.key, value: event.value }).collect())
    }

    fn confirmed(&self, place: &str, reader: &Reader) -> anyhow::Result<BTreeMap<i32, u64>> {
        let committed = self.client.committed(&self.group(reader), place)?;
        committed.into_iter().map(|(partition, offset)| Ok((partition, u64::try_from(offset)?))).collect()
    }

    fn many(&self) -> u64 {
        // The mock keeps 5 MiB of a partition.
        if matches!(self.broker, Broker::Mock(_)) { 40_000 } else { 110_000 }
    }

    fn largest(&self) -> usize {
        LARGEST
    }

    fn patience(&self) -> Duration {
        // A broker allows no less by default.
        if matches!(self.broker, Broker::Mock(_)) { MOCK_SESSION } else { Duration::from_secs(6) }
    }

    fn go_away(&self) -> anyhow::Result<()> {
        match &self.broker {
            Broker::Own(kafka) => kafka.borrow_mut().kill(),
            Broker::Mock(mock) => Ok(mock.cluster().map_or(Ok(()), |cluster| cluster.broker_down(-1))?),
            Broker::Shared(_) => bail!("others use it"),
        }
    }

    fn come_back(&self) -> anyhow::Result<()> {
        match &self.broker {
            Broker::Own(kafka) => kafka.borrow_mut().restart(),
            Broker::Mock(mock) => Ok(mock.cluster().map_or(Ok(()), |cluster| cluster.broker_up(-1))?),
            Broker::Shared(_) => bail!("others use it"),
        }
    }
}
