//! Core NATS: inputs and targets that nothing keeps.

use super::Validator;
use super::broker::Broker;
use super::nats::key_place;
use super::wiring::{Place, Role, Wire};
use crate::config::error::Span;
use crate::config::language::{CoreNatsInput, CoreNatsTarget};
use crate::spec::{self, CoreNatsSourceSpec};

impl Validator<'_> {
    pub(super) fn core_source(
        &mut self,
        nth: usize,
        input: &CoreNatsInput,
        prefix: Option<&str>,
    ) -> Option<spec::SourceSpec> {
        let connection = self.connection_of(&input.connection, Some(Broker::Nats));
        let queue = self.name_or_default("a queue group", &input.queue, |name| &name.0, prefix);
        let subject_header = self.subject_header(&input.subject_header);
        let subjects = self.filters(&input.subjects);
        let connection = connection?;
        (!subjects.is_empty()).then_some(())?;
        let key = key_place(input.key.value?);
        let source = CoreNatsSourceSpec { connection, subjects, queue: queue?, key, subject_header };
        self.wire_core(nth, &source, &input.subjects.span);
        Some(spec::SourceSpec::CoreNats(source))
    }

    /// Notes what a pipeline reads.
    pub(super) fn wire_core(&mut self, nth: usize, source: &CoreNatsSourceSpec, span: &Span) {
        let cluster = self.cluster(&source.connection);
        source.subjects.iter().for_each(|subject| self.place(&source.connection, subject, span));
        let topic =
            Place { cluster, name: source.subjects.join(", "), subjects: Some(source.subjects.clone()), is_core: true };
        let role = Role::Input { group: Some(source.queue.clone()) };
        self.wiring.wires.push(Wire { pipeline: nth, role, topic, span: span.clone() });
    }

    pub(super) fn core_target(&mut self, nth: usize, target: &CoreNatsTarget, role: Role) -> Option<spec::TargetSpec> {
        let connection = self.connection_of(&target.connection, Some(Broker::Nats));
        let subject = &target.subject.value.as_ref()?.0;
        self.core_subject(nth, connection, subject, &target.subject.span, role)
    }

    /// A subject to write to that nothing keeps.
    pub(super) fn core_subject(
        &mut self,
        nth: usize,
        connection: Option<String>,
        subject: &str,
        span: &Span,
        role: Role,
    ) -> Option<spec::TargetSpec> {
        let (connection, subject) = self.wire_subject(nth, connection, subject, span, role)?;
        Some(spec::TargetSpec::CoreNats { connection, subject })
    }
}
