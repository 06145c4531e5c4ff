//! NATS: connections, streams, inputs, targets.

use super::broker::Broker;
use super::names::Subject;
use super::wiring::{Place, Role, Wire};
use super::{Validator, names};
use crate::config::error::{Kind, Mistake, Span};
use crate::config::language::{self, Discard, KeyPlace, Nats, NatsInput, NatsTarget, Retention, Storage};
use crate::config::read::{Field, Item, Named};
use crate::config::scalar::{HeaderText, SecretValue, SubjectFilter};
use crate::config::show_duration;
use crate::spec::{self, NatsAuth, NatsConnection, TlsSpec, subjects_meet};

impl Validator<'_> {
    pub(super) fn nats(&mut self, nats: &Nats) -> Option<NatsConnection> {
        let (mut servers, mut encrypted) = (Vec::new(), false);
        for item in nats.servers.value.as_deref().unwrap_or(&[]) {
            for address in item.value.0.split(',').map(str::trim) {
                match names::server(address) {
                    Ok((server, tls)) => {
                        encrypted |= tls;
                        servers.push(server);
                    }
                    Err(refusal) => drop(self.checked(Err(refusal), &item.span)),
                }
            }
        }
        let tls = nats.tls.value.as_ref().map(|tls| self.tls(tls)).or_else(|| encrypted.then(TlsSpec::default));
        let auth = self.auth(nats)?;
        (!servers.is_empty()).then_some(NatsConnection { servers, tls, auth })
    }

    fn auth(&mut self, nats: &Nats) -> Option<NatsAuth> {
        let secret = |field: &Field<SecretValue>| field.value.as_ref().map(|value| value.0.clone());
        let half = match (nats.user.key.as_ref(), nats.password.key.as_ref()) {
            (Some(user), None) => Some((user, "`user` needs its `password`", "add `password: \"${NATS_PASSWORD}\"`")),
            (None, Some(password)) => Some((password, "`password` needs its `user`", "add `user: fluxmill`")),
            _ => None,
        };
        if let Some((span, message, help)) = half {
            self.mistakes.push(Mistake::at(Kind::NatsKeys, span.clone(), message).help(help));
        }
        let ways = [
            ("user", nats.user.key.as_ref().or(nats.password.key.as_ref())),
            ("token", nats.token.key.as_ref()),
            ("nkey", nats.nkey.key.as_ref()),
            ("credentials", nats.credentials.key.as_ref()),
        ];
        let written: Vec<(&str, &Span)> = ways.into_iter().filter_map(|(name, key)| Some((name, key?))).collect();
        if let [(one, first), (other, second), ..] = written.as_slice() {
            let message = format!("there are both `{one}` and `{other}`");
            let mistake = Mistake::at(Kind::NatsKeys, (*second).clone(), message).other((*first).clone(), "and here");
            self.mistakes.push(mistake.help("delete one of them: a client says in one way who it is"));
            return None;
        }
        if let Some(seed) = nats.nkey.value.as_ref().map(|seed| seed.0.0.trim())
            && !(seed.starts_with("SU") && seed.len() == 58 && seed.bytes().all(|byte| byte.is_ascii_alphanumeric()))
        {
            let message = "the nkey is no user's seed";
            let help =
                "write the seed, which begins with `SU` and has 58 letters and digits, as `nk -gen user` prints it";
            self.mistakes.push(Mistake::at(Kind::NatsKeys, nats.nkey.span.clone(), message).help(help));
            return None;
        }
        match written.first().map(|(name, _)| *name) {
            None => Some(NatsAuth::None),
            Some("user") => Some(NatsAuth::Password {
                user: nats.user.value.as_ref()?.0.clone(),
                password: secret(&nats.password)?,
            }),
            Some("token") => secret(&nats.token).map(NatsAuth::Token),
            Some("nkey") => secret(&nats.nkey).map(NatsAuth::Nkey),
            Some(_) => secret(&nats.credentials).map(NatsAuth::Credentials),
        }
    }

    /// The streams that are listed, and these that stand for topics.
    pub(super) fn streams(&mut self, of_topics: Vec<(spec::StreamSpec, Span)>) -> Vec<spec::StreamSpec> {
        let written = self.file.streams.value.as_ref().map_or(&[][..], |map| &map.entries);
        let listed = written.iter().map(|entry| (self.stream(entry), entry.span.clone())).collect::<Vec<_>>();
        let listed = listed.into_iter().filter_map(|(stream, span)| Some((stream?, span)));
        let mut streams: Vec<(spec::StreamSpec, Span)> = Vec::new();
        for (stream, span) in listed.chain(of_topics) {
            let meets = |other: &&(spec::StreamSpec, Span)| {
                let meet = |subject: &String| other.0.subjects.iter().any(|other| subjects_meet(other, subject));
                other.0.connection == stream.connection
                    && (other.0.name == stream.name || stream.subjects.iter().any(meet))
            };
            if let Some((other, place)) = streams.iter().find(meets) {
                let (message, help) = if other.name == stream.name {
                    let (one, two) = (other.subjects.join(", "), stream.subjects.join(", "));
                    let message = format!("stream `{}` would be there twice: for `{one}` and for `{two}`", other.name);
                    (message, "a stream's name has `-` where a topic's has `.`: write another name for one of them")
                } else {
                    let message = format!("streams `{}` and `{}` store the same subjects", other.name, stream.name);
                    (message, "a subject belongs to one stream")
                };
                let mistake = Mistake::at(Kind::StreamSettings, span.clone(), message);
                self.mistakes.push(mistake.other(place.clone(), "and here").help(help));
            }
            streams.push((stream, span));
        }
        streams.into_iter().map(|(stream, _)| stream).collect()
    }

    fn stream(&mut self, entry: &Named<language::Stream>) -> Option<spec::StreamSpec> {
        let named = self.checked(names::nats("a stream", &entry.name), &entry.span);
        let stream = entry.value.as_ref()?;
        let connection = self.connection_of(&stream.connection, Some(Broker::Nats));
        let subjects = self.filters(&stream.subjects);
        if let (Some(age), Some(window)) = (stream.max_age.value, stream.duplicate_window.value)
            && window.0 > age.0
        {
            let message = format!(
                "messages are kept for {}, but known for {}",
                show_duration(age.duration()),
                show_duration(window.duration())
            );
            let help = "write a longer `max_age`, or a shorter `duplicate_window`";
            self.mistakes.push(Mistake::at(Kind::StreamSettings, stream.max_age.span.clone(), message).help(help));
        }
        let connection = connection?;
        self.place(&connection, &entry.name, &entry.span);
        (named && !subjects.is_empty()).then_some(())?;
        Some(spec::StreamSpec {
            connection,
            name: entry.name.clone(),
            subjects,
            storage: match stream.storage.value? {
                Storage::File => spec::Storage::File,
                Storage::Memory => spec::Storage::Memory,
            },
            replicas: usize::try_from(stream.replicas.value?.0).unwrap_or(1),
            duplicate_window: stream.duplicate_window.value?.duration(),
            retention: match stream.retention.value? {
                Retention::Limits => spec::Retention::Limits,
                Retention::Interest => spec::Retention::Interest,
                Retention::WorkQueue => spec::Retention::WorkQueue,
            },
            max_age: stream.max_age.value.map(|age| age.duration()),
            max_bytes: stream.max_bytes.value.map(|size| size.0),
            max_messages: stream.max_messages.value.map(|count| count.0),
            max_message_bytes: stream.max_message_size.value.map(|size| u32::try_from(size.0).unwrap_or(u32::MAX)),
            discard: match stream.discard.value? {
                Discard::Old => spec::Discard::Old,
                Discard::New => spec::Discard::New,
            },
            atomic: stream.atomic.value?.0,
            implied: false,
        })
    }

    /// Subjects that are read or stored, each once.
    pub(super) fn filters(&mut self, field: &Field<Vec<Item<SubjectFilter>>>) -> Vec<String> {
        let mut subjects: Vec<String> = Vec::new();
        for item in field.value.as_deref().unwrap_or(&[]) {
            let subject = &item.value.0;
            if !self.checked(names::subject(subject, Subject::Filter), &item.span) {
                continue;
            }
            if let Some(other) = subjects.iter().find(|other| subjects_meet(other, subject)) {
                let message = format!("`{other}` and `{subject}` have subjects in common");
                let mistake = Mistake::at(Kind::DuplicateTopic, item.span.clone(), message);
                self.mistakes.push(mistake.help("keep one of them, or write subjects that do not meet"));
                continue;
            }
            subjects.push(subject.clone());
        }
        subjects
    }

    pub(super) fn nats_source(
        &mut self,
        nth: usize,
        input: &NatsInput,
        prefix: Option<&str>,
    ) -> Option<spec::SourceSpec> {
        let connection = self.connection_of(&input.connection, Some(Broker::Nats));
        let durable = self.name_or_default("a durable consumer", &input.durable, |name| &name.0, prefix);
        let header = self.subject_header(&input.subject_header);
        let subjects = self.filters(&input.subjects);
        let stream = &input.stream.value.as_ref()?.0;
        let span = &input.stream.span;
        let named = self.checked(names::nats("a stream", stream), span);
        let connection = connection?;
        self.wire_stream(nth, &connection, stream, &subjects, durable.clone(), span);
        named.then_some(())?;
        Some(spec::SourceSpec::Nats(spec::NatsSourceSpec {
            connection,
            stream: stream.clone(),
            subjects,
            durable: durable?,
            start: input.start.value?.0,
            ack_wait: input.ack_wait.value?.duration(),
            key: key_place(input.key.value?),
            subject_header: header,
        }))
    }

    /// Notes that a pipeline reads a stream, or these subjects of it.
    pub(super) fn wire_stream(
        &mut self,
        nth: usize,
        connection: &str,
        stream: &str,
        subjects: &[String],
        durable: Option<String>,
        span: &Span,
    ) {
        self.place(connection, stream, span);
        let listed = self.file.streams.value.as_ref().map_or(&[][..], |map| &map.entries);
        let listed = listed.iter().find(|entry| entry.name == *stream).and_then(|entry| entry.value.as_ref());
        let stored = listed.and_then(|listed| listed.subjects.value.as_ref());
        let read = match (subjects.is_empty(), stored) {
            (true, Some(stored)) => stored.iter().map(|item| item.value.0.clone()).collect(),
            _ => subjects.to_vec(),
        };
        let topic =
            Place { cluster: self.cluster(connection), name: stream.to_owned(), subjects: Some(read), is_core: false };
        let role = Role::Input { group: durable };
        self.wiring.wires.push(Wire { pipeline: nth, role, topic, span: span.clone() });
    }

    /// A name that NATS takes: as it is written, or chain and pipeline. `text` is the name that is written.
    pub(super) fn name_or_default<T>(
        &mut self,
        of: &str,
        written: &Field<T>,
        text: impl Fn(&T) -> &str,
        prefix: Option<&str>,
    ) -> Option<String> {
        match written.value.as_ref().map(text) {
            Some(name) => self.checked(names::nats(of, name), &written.span).then(|| name.to_owned()),
            None if written.is_written() => None,
            None => prefix.map(spec::without_dots),
        }
    }

    pub(super) fn subject_header(&mut self, written: &Field<HeaderText>) -> Option<String> {
        let header = written.value.as_ref()?;
        self.checked(names::header(&header.0), &written.span).then(|| header.0.clone())
    }

    pub(super) fn nats_target(&mut self, nth: usize, target: &NatsTarget, role: Role) -> Option<spec::TargetSpec> {
        let connection = self.connection_of(&target.connection, Some(Broker::Nats));
        let (subject, atomic) = (&target.subject.value.as_ref()?.0, target.atomic.value?.0);
        let (connection, subject) = self.wire_subject(nth, connection, subject, &target.subject.span, role)?;
        if atomic {
            self.takes_batches(&connection, &subject, &target.atomic.span);
        }
        Some(spec::TargetSpec::Nats { connection, subject, atomic })
    }

    /// What is published in atomic batches needs one stream that takes them, as far as the file lists streams.
    fn takes_batches(&mut self, connection: &str, subject: &str, span: &Span) {
        let file = self.file;
        let listed = file.streams.value.as_ref().map_or(&[][..], |map| &map.entries);
        let stores = |entry: &&Named<language::Stream>| {
            let Some(stream) = &entry.value else { return false };
            let on = stream.connection.value.as_ref().is_none_or(|name| name.0 == connection);
            let subjects = stream.subjects.value.as_deref().unwrap_or(&[]);
            on && subjects.iter().any(|stored| subjects_meet(&stored.value.0, subject))
        };
        let streams: Vec<_> = listed.iter().filter(stores).collect();
        let refuses = |entry: &&&Named<language::Stream>| {
            entry.value.as_ref().is_some_and(|stream| stream.atomic.value.is_some_and(|flag| !flag.0))
        };
        if let [one, other, ..] = streams.as_slice() {
            let message = format!(
                "an atomic batch is within one stream, but `{}` and `{}` store `{subject}`",
                one.name, other.name
            );
            let mistake = Mistake::at(Kind::StreamSettings, span.clone(), message).other(other.span.clone(), "here");
            self.mistakes
                .push(mistake.help("list one stream for all subjects that this target has, or write `atomic: false`"));
        } else if let Some(stream) = streams.iter().find(refuses) {
            let message = format!("stream `{}` takes no atomic batches", stream.name);
            let mistake =
                Mistake::at(Kind::StreamSettings, span.clone(), message).other(stream.span.clone(), "this stream");
            self.mistakes.push(mistake.help("add `atomic: true` to the stream"));
        }
    }

    /// Where each publication is stored as a whole, a batch of events is one at most.
    pub(super) fn fits_atomic_batches(&mut self, pipeline: &spec::PipelineSpec, span: &Span) {
        let (events, most) = (pipeline.batch.max_events, spec::ATOMIC_BATCH_MAX);
        if events > most && pipeline.targets().any(spec::TargetSpec::is_atomic) {
            let message =
                format!("batches of {events} events do not fit into atomic batches, of at most {most} messages");
            let help = format!("write `max_events: {most}` or less, or take `atomic: true` away");
            self.mistakes.push(Mistake::at(Kind::OutOfBounds, span.clone(), message).help(help));
        }
    }

    /// A subject to write to that a stream stores.
    pub(super) fn stored_subject(
        &mut self,
        nth: usize,
        connection: Option<String>,
        subject: &str,
        span: &Span,
        role: Role,
    ) -> Option<spec::TargetSpec> {
        let (connection, subject) = self.wire_subject(nth, connection, subject, span, role)?;
        Some(spec::TargetSpec::Nats { connection, subject, atomic: false })
    }

    /// Notes that a pipeline writes to a subject, if it can.
    pub(super) fn wire_subject(
        &mut self,
        pipeline: usize,
        connection: Option<String>,
        subject: &str,
        span: &Span,
        role: Role,
    ) -> Option<(String, String)> {
        if !self.checked(names::subject(subject, Subject::Template), span) {
            return None;
        }
        let connection = connection?;
        self.place(&connection, subject, span);
        let (cluster, subjects) = (self.cluster(&connection), Some(vec![subject.to_owned()]));
        let topic = Place { cluster, name: subject.to_owned(), subjects, is_core: false };
        self.wiring.wires.push(Wire { pipeline, role, topic, span: span.clone() });
        Some((connection, subject.to_owned()))
    }
}

/// Where the key of an event is.
pub(super) fn key_place(place: KeyPlace) -> spec::NatsKey {
    match place {
        KeyPlace::Header => spec::NatsKey::Header,
        KeyPlace::LastToken => spec::NatsKey::LastToken,
    }
}

/// The stream of a pipeline's dead letters, unless one of these takes them.
pub(super) fn default_dead_letter_stream(
    pipeline: &spec::PipelineSpec,
    listed: &[spec::StreamSpec],
) -> Option<spec::StreamSpec> {
    let spec::LastResort::DeadLetter(spec::TargetSpec::Nats { connection, subject, .. }) = &pipeline.on_error.then
    else {
        return None;
    };
    let takes = |stream: &spec::StreamSpec| {
        stream.connection == *connection && stream.subjects.iter().any(|stored| subjects_meet(stored, subject))
    };
    (!listed.iter().any(takes))
        .then(|| spec::StreamSpec::implied(connection, spec::without_dots(subject), vec![subject.clone()]))
}
