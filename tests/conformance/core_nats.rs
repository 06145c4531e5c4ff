//! Core NATS on a real nats-server of each case's own. It keeps nothing: what is fed waits here for a reader, and somebody
//! listens to each place from the beginning.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use async_nats::ConnectOptions;
use fluxmill::broker::nats::{CoreSource, NatsProducer};
use fluxmill::broker::{AnyDriver, AnyProducer, AnySink, AnySource, BrokerError};
use fluxmill::delivery::Tracker;
use fluxmill::spec::{CoreNatsSourceSpec, NatsAuth, NatsConnection, NatsKey, Secret};

use crate::jetstream::message;
use crate::support::core::{Core, Listener};
use crate::support::kafka::listen;
use crate::support::nats::Nats;
use crate::support::suite::Case;
use crate::support::wait::wait_until;
use crate::world::{Event, LIMIT, Needs, Reader, Stored, World};

/// The largest message that the server takes, in bytes.
const LARGEST: usize = 400_000;
/// `app` may neither subscribe nor publish.
const USERS: &str = "authorization { users: [ { user: admin, password: secret1 }, { user: app, password: secret2, \
                     permissions: { publish: { deny: \"denied.>\" }, subscribe: { deny: \"denied.>\" } } } ] }";

/// What came by at a place, and what waits for its reader.
struct Place {
    listener: Listener,
    heard: Vec<Stored>,
    waiting: Vec<Event>,
}

/// See the module.
pub(crate) struct CoreWorld {
    // It ends when this does.
    _nats: Nats,
    /// Where the server tells who has subscribed.
    monitor: u16,
    core: Core,
    connection: NatsConnection,
    needs: Needs,
    places: RefCell<BTreeMap<String, Place>>,
}

impl CoreWorld {
    pub(crate) fn start(_: &Case, _: &str, needs: Needs) -> anyhow::Result<Box<dyn World>> {
        let monitor = listen("127.0.0.1")?.local_addr()?.port();
        let users = if needs == Needs::Denial { USERS } else { "" };
        let nats = Nats::start(&format!("max_payload: {LARGEST}\nhttp: \"127.0.0.1:{monitor}\"\n{users}"))?;
        let (options, auth) = if needs == Needs::Denial {
            let options = ConnectOptions::with_user_and_password("admin".into(), "secret1".into());
            (options, NatsAuth::Password { user: "app".into(), password: Secret("secret2".into()) })
        } else {
            (ConnectOptions::new(), NatsAuth::None)
        };
        let core = Core::connect(&nats.url(), options)?;
        let connection = NatsConnection { servers: vec![nats.url()], tls: None, auth };
        Ok(Box::new(Self { _nats: nats, monitor, core, connection, needs, places: RefCell::default() }))
    }

    /// How many have subscribed to a place: the listener, and its reader.
    fn subscribers(&self, place: &str) -> anyhow::Result<u64> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.monitor))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(stream, "GET /subsz?subs=1&test={place}.x HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let body: serde_json::Value = serde_json::from_str(body)?;
        body["total"].as_u64().with_context(|| format!("no count in {body}"))
    }
}

impl World for CoreWorld {
    fn place(&self, name: &str, _: u16) -> anyhow::Result<String> {
        let place = Place { listener: self.core.listen(&format!("{name}.>"))?, heard: Vec::new(), waiting: Vec::new() };
        self.places.borrow_mut().insert(name.to_owned(), place);
        Ok(name.to_owned())
    }

    fn feed(&self, place: &str, events: &[Event]) -> anyhow::Result<()> {
        if self.subscribers(place)? > 1 {
            return self.core.publish(events.iter().map(|event| message(place, event)));
        }
        let mut places = self.places.borrow_mut();
        places.get_mut(place).context("no such place")?.waiting.extend_from_slice(events);
        Ok(())
    }

    fn source(&self, place: &str, reader: &Reader) -> Result<AnySource, BrokerError> {
        let spec = CoreNatsSourceSpec {
            connection: "main".into(),
            subjects: vec![format!("{place}.>")],
            queue: reader.name.to_owned(),
            key: NatsKey::Header,
            subject_header: None,
        };
        Ok(AnySource::CoreNats(CoreSource::new(&self.connection, &spec, "conformance")))
    }

    fn started(&self, place: &str) -> anyhow::Result<()> {
        // Who is not permitted to never subscribes.
        if self.needs == Needs::Denial {
            return Ok(());
        }
        wait_until(LIMIT, "the source to subscribe", || Ok((self.subscribers(place)? > 1).then_some(())))?;
        let waiting = self.places.borrow_mut().get_mut(place).map(|place| std::mem::take(&mut place.waiting));
        self.core.publish(waiting.unwrap_or_default().iter().map(|event| message(place, event)))
    }

    fn producer(&self, _: &str) -> Result<(AnyProducer, Option<AnyDriver>), BrokerError> {
        let (producer, driver) = NatsProducer::new(&self.connection, "conformance", false);
        Ok((AnyProducer::Nats(producer), Some(AnyDriver::Nats(Box::new(driver)))))
    }

    fn sink(&self, producer: &AnyProducer, place: &str, _: &Arc<Tracker>) -> AnySink {
        match producer {
            AnyProducer::Nats(producer) => AnySink::Nats(producer.core_sink(&format!("{place}.{{key}}"))),
            other => panic!("no producer of this world: {other:?}"),
        }
    }

    fn stored(&self, place: &str) -> anyhow::Result<Vec<Stored>> {
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(place).context("no such place")?;
        for message in place.listener.rest()? {
            let key = message.headers.as_ref().and_then(|headers| headers.get("Fluxmill-Key"));
            let key = key.map(|key| key.as_str().as_bytes().to_vec());
            place.heard.push(Stored { partition: 0, key, value: Some(message.payload.to_vec()) });
        }
        Ok(place.heard.clone())
    }

    fn confirms(&self) -> bool {
        false
    }

    fn confirmed(&self, _: &str, _: &Reader) -> anyhow::Result<BTreeMap<i32, u64>> {
        bail!("core NATS has no confirmations")
    }

    fn largest(&self) -> usize {
        LARGEST
    }

    fn patience(&self) -> Duration {
        LIMIT
    }

    fn go_away(&self) -> anyhow::Result<()> {
        bail!("no case that applies needs it")
    }

    fn come_back(&self) -> anyhow::Result<()> {
        bail!("no case that applies needs it")
    }
}
