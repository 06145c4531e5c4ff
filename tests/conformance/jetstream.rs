//! A real nats-server with JetStream, of each case's own.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::stream::{Config, StorageType};
use fluxmill::broker::nats::{NatsProducer, NatsSource, Origins, Sender};
use fluxmill::broker::{AnyDriver, AnyProducer, AnySink, AnySource, BrokerError};
use fluxmill::delivery::Tracker;
use fluxmill::spec::{NatsAuth, NatsConnection, NatsKey, NatsSourceSpec, Secret, StartOffset};

use crate::support::nats::{Jet, Nats};
use crate::support::suite::Case;
use crate::world::{Event, Needs, Reader, Stored, World};

/// The largest message that the server takes, in bytes.
const LARGEST: usize = 400_000;
/// A message that is not confirmed for so long is delivered again, unless the case says otherwise.
const ACK_WAIT: Duration = Duration::from_secs(30);
/// `app` may neither consume nor publish.
const USERS: &str = "authorization { users: [ { user: admin, password: secret1 }, { user: app, password: secret2, \
                     permissions: { publish: { deny: [\"$JS.API.CONSUMER.>\", \"denied.>\"] } } } ] }";

/// See the module.
pub(crate) struct JetStreamWorld {
    nats: RefCell<Nats>,
    jet: RefCell<Jet>,
    connection: NatsConnection,
    needs: Needs,
}

impl JetStreamWorld {
    pub(crate) fn start(_: &Case, _: &str, needs: Needs) -> anyhow::Result<Box<dyn World>> {
        let denial = needs == Needs::Denial;
        let nats = Nats::start(&format!("max_payload: {LARGEST}\n{}", if denial { USERS } else { "" }))?;
        let password = |user: &str, password: &str| (user.to_owned(), password.to_owned());
        let (jet, auth) = if denial {
            let (admin, secret) = password("admin", "secret1");
            let (user, secret2) = password("app", "secret2");
            let options = async_nats::ConnectOptions::with_user_and_password(admin, secret);
            (Jet::new(&nats.url(), options)?, NatsAuth::Password { user, password: Secret(secret2) })
        } else {
            (nats.client()?, NatsAuth::None)
        };
        let connection = NatsConnection { servers: vec![nats.url()], tls: None, auth };
        Ok(Box::new(Self { nats: RefCell::new(nats), jet: RefCell::new(jet), connection, needs }))
    }
}

/// An event with a key of letters as whoever writes to NATS sends it.
pub(crate) fn message(place: &str, event: &Event) -> (String, HeaderMap, Vec<u8>) {
    let key = String::from_utf8_lossy(event.key.as_deref().unwrap_or_default()).into_owned();
    let mut headers = HeaderMap::new();
    headers.insert("Fluxmill-Key", key.as_str());
    (format!("{place}.{key}"), headers, event.value.clone().unwrap_or_default())
}

impl World for JetStreamWorld {
    fn place(&self, name: &str, _: u16) -> anyhow::Result<String> {
        self.jet.borrow().create_with(Config {
            name: name.to_owned(),
            subjects: vec![format!("{name}.>")],
            // On disk each message would be waited for.
            storage: if self.needs == Needs::Outage { StorageType::File } else { StorageType::Memory },
            ..Config::default()
        })?;
        Ok(name.to_owned())
    }

    fn feed(&self, place: &str, events: &[Event]) -> anyhow::Result<()> {
        self.jet.borrow().publish(events.iter().map(|event| message(place, event)))
    }

    fn source(&self, place: &str, reader: &Reader) -> Result<AnySource, BrokerError> {
        let spec = NatsSourceSpec {
            connection: "main".into(),
            stream: place.to_owned(),
            subjects: Vec::new(),
            durable: reader.name.to_owned(),
            start: StartOffset::Earliest,
            ack_wait: reader.patience.unwrap_or(ACK_WAIT),
            key: NatsKey::Header,
            subject_header: None,
        };
        Ok(AnySource::Nats(NatsSource::new(&self.connection, &spec, "conformance")))
    }

    fn producer(&self, _: &str) -> Result<(AnyProducer, Option<AnyDriver>), BrokerError> {
        let (producer, driver) = NatsProducer::new(&self.connection, "conformance", false);
        Ok((AnyProducer::Nats(producer), Some(AnyDriver::Nats(Box::new(driver)))))
    }

    fn sink(&self, producer: &AnyProducer, place: &str, tracker: &Arc<Tracker>) -> AnySink {
        let sender = Sender {
            pipeline: "conformance".into(),
            output: "default".into(),
            tracker: tracker.clone(),
            origins: Origins::Stream,
        };
        match producer {
            AnyProducer::Nats(producer) => AnySink::Nats(producer.sink(&format!("{place}.{{key}}"), sender)),
            other => panic!("no producer of this world: {other:?}"),
        }
    }

    fn stored(&self, place: &str) -> anyhow::Result<Vec<Stored>> {
        let read = self.jet.borrow().read(place)?.into_iter();
        Ok(read
            .map(|stored| {
                let key = stored.header("Fluxmill-Key").map(|key| key.as_bytes().to_vec());
                Stored { partition: 0, key, value: Some(stored.payload) }
            })
            .collect())
    }

    fn confirmed(&self, place: &str, reader: &Reader) -> anyhow::Result<BTreeMap<i32, u64>> {
        let consumer = self.jet.borrow().consumer(place, reader.name)?;
        Ok([(0, consumer.ack_floor.stream_sequence)].into())
    }

    fn taken(&self, place: &str, reader: &Reader) -> anyhow::Result<Option<u64>> {
        let consumer = self.jet.borrow().consumer(place, reader.name);
        // The source may not have made it yet.
        Ok(Some(consumer.map_or(0, |consumer| consumer.delivered.consumer_sequence)))
    }

    fn ahead_max(&self) -> u64 {
        // What waits in the source, and what was asked for when that was nearly full.
        8_000
    }

    fn unconfirmed_max(&self) -> Option<u64> {
        Some(100_000)
    }

    fn largest(&self) -> usize {
        LARGEST
    }

    fn patience(&self) -> Duration {
        // A source that gets no processor for a moment must still say in time that it works.
        Duration::from_secs(3)
    }

    fn shares(&self) -> bool {
        false
    }

    fn go_away(&self) -> anyhow::Result<()> {
        self.nats.borrow_mut().kill()
    }

    fn come_back(&self) -> anyhow::Result<()> {
        self.nats.borrow_mut().restart()?;
        self.jet.replace(self.nats.borrow().client()?);
        Ok(())
    }
}
