//! How pipelines are joined by topics, and what must not be: shared groups, loops, dead letters that come back. Pure.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::config::error::{Kind, Mistake, Span};
use crate::spec::subjects_meet;

/// A topic, or subjects, of a cluster.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The cluster.
    pub(super) cluster: String,
    /// The topic; the stream that is read; the subject that is written to.
    pub(super) name: String,
    /// On NATS: the subjects, as far as they are known.
    pub(super) subjects: Option<Vec<String>>,
    /// It is of core NATS, and no stream.
    pub(super) is_core: bool,
}

impl Place {
    /// Whether an event that goes to one comes from the other.
    fn meets(&self, other: &Self) -> bool {
        self.cluster == other.cluster
            && match (&self.subjects, &other.subjects) {
                (None, None) => self.name == other.name,
                (Some(one), Some(other)) => one.iter().any(|one| other.iter().any(|other| subjects_meet(one, other))),
                _ => false,
            }
    }

    /// Whether both are the same topic or stream, or subjects of core NATS that one message can be of.
    fn is(&self, other: &Self) -> bool {
        let kind = |place: &Self| (place.subjects.is_some(), place.is_core);
        let is_one_kind = self.cluster == other.cluster && kind(self) == kind(other);
        is_one_kind && if self.is_core { self.meets(other) } else { self.name == other.name }
    }
}

/// What a topic is to a pipeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is read, in a group.
    Input {
        /// The group, when it is known.
        group: Option<String>,
    },
    /// It is written.
    Output,
    /// Dead letters go there.
    DeadLetter,
}

/// A topic of a pipeline.
#[derive(Clone, Debug)]
pub(super) struct Wire {
    /// The pipeline, by number.
    pub(super) pipeline: usize,
    /// What the topic is to it.
    pub(super) role: Role,
    /// The topic.
    pub(super) topic: Place,
    /// Its place.
    pub(super) span: Span,
}

/// Every wire of a chain.
#[derive(Debug, Default)]
pub(super) struct Wiring {
    /// The pipelines: number, name, place.
    pub(super) pipelines: Vec<(usize, String, Span)>,
    /// Their topics.
    pub(super) wires: Vec<Wire>,
    /// Static members: pipeline, group, instance, place.
    pub(super) members: Vec<(usize, String, String, Span)>,
}

impl Wiring {
    fn name(&self, pipeline: usize) -> &str {
        self.pipelines.iter().find(|(nth, ..)| *nth == pipeline).map_or("", |(_, name, _)| name)
    }

    fn inputs(&self) -> impl Iterator<Item = &Wire> {
        self.wires.iter().filter(|wire| matches!(wire.role, Role::Input { .. }))
    }

    fn of(&self, role: Role) -> impl Iterator<Item = &Wire> {
        self.wires.iter().filter(move |wire| wire.role == role)
    }

    /// Every mistake of the whole.
    pub(super) fn check(&self, allow_loop: bool) -> Vec<Mistake> {
        let mut mistakes = self.shared_groups();
        mistakes.extend(self.shared_members());
        mistakes.extend(self.dead_letters());
        if !allow_loop {
            mistakes.extend(self.own_inputs());
            mistakes.extend(self.loops());
        }
        mistakes
    }

    fn shared_groups(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        let inputs: Vec<_> = self.inputs().collect();
        for (nth, wire) in inputs.iter().enumerate() {
            let Role::Input { group: Some(group) } = &wire.role else { continue };
            let same = |other: &&&Wire| {
                other.pipeline != wire.pipeline && other.topic.is(&wire.topic) && other.role == wire.role
            };
            if let Some(first) = inputs[..nth].iter().find(same) {
                let (a, b, topic) = (self.name(first.pipeline), self.name(wire.pipeline), &wire.topic.name);
                let (how, what) = match (wire.topic.is_core, wire.topic.subjects.is_some()) {
                    (true, _) => ("in", "queue group"),
                    (false, true) => ("by", "durable consumer"),
                    (false, false) => ("in", "group"),
                };
                let message = format!("`{a}` and `{b}` read `{topic}` {how} the same {what} `{group}`");
                mistakes.push(
                    Mistake::at(Kind::SharedGroup, wire.span.clone(), message)
                        .label(format!("read by `{b}`"))
                        .other(first.span.clone(), format!("read by `{a}`"))
                        .help(format!(
                            "each would get only a part of the events; give each pipeline a {what} of its own"
                        )),
                );
            }
        }
        mistakes
    }

    fn shared_members(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        for (nth, (pipeline, group, instance, span)) in self.members.iter().enumerate() {
            let first = self.members[..nth].iter().find(|other| (&other.1, &other.2) == (group, instance));
            if let Some((first, _, _, place)) = first {
                let (a, b) = (self.name(*first), self.name(*pipeline));
                let message = format!("`{a}` and `{b}` are the same member `{instance}` of group `{group}`");
                mistakes.push(
                    Mistake::at(Kind::SharedGroup, span.clone(), message)
                        .other(place.clone(), format!("the member of `{a}`"))
                        .help("the broker would throw one of them out; give each an `instance` of its own"),
                );
            }
        }
        mistakes
    }

    fn dead_letters(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        for dead in self.of(Role::DeadLetter) {
            let (name, topic) = (self.name(dead.pipeline), &dead.topic.name);
            if let Some(input) = self.inputs().find(|input| input.topic.meets(&dead.topic)) {
                let reader = self.name(input.pipeline);
                let message = format!("the dead letters of `{name}` go to `{topic}`, which `{reader}` reads");
                mistakes.push(
                    Mistake::at(Kind::DeadLetterIsInput, dead.span.clone(), message)
                        .label("dead letters go here")
                        .other(input.span.clone(), format!("read by `{reader}`"))
                        .help("send them to a topic that no pipeline of this chain reads; a reader of dead letters belongs in a chain of its own"),
                );
            }
            let own = self
                .of(Role::Output)
                .find(|output| output.pipeline == dead.pipeline && output.topic.meets(&dead.topic));
            if let Some(output) = own {
                let message = format!("the dead letters of `{name}` go to `{topic}`, where its results go");
                mistakes.push(
                    Mistake::at(Kind::DeadLetterIsOutput, dead.span.clone(), message)
                        .label("dead letters go here")
                        .other(output.span.clone(), "and results go here")
                        .help(format!("send them to a topic of their own, such as `{topic}.dead`")),
                );
            }
        }
        mistakes
    }

    fn own_inputs(&self) -> Vec<Mistake> {
        let mut mistakes = Vec::new();
        for output in self.of(Role::Output) {
            let own = self.inputs().find(|input| input.pipeline == output.pipeline && input.topic.meets(&output.topic));
            if let Some(input) = own {
                let message =
                    format!("`{}` reads `{}` and writes to it", self.name(output.pipeline), output.topic.name);
                mistakes.push(
                    Mistake::at(Kind::OwnInput, output.span.clone(), message)
                        .label("written here")
                        .other(input.span.clone(), "read here")
                        .help("write to another topic; or, if events may go round for ever, add `allow_loop: true` at the top"),
                );
            }
        }
        mistakes
    }

    /// One shortest loop through each pipeline that is in one, each loop once.
    fn loops(&self) -> Vec<Mistake> {
        let mut edges: BTreeMap<usize, Vec<(usize, &Wire)>> = BTreeMap::new();
        for output in self.of(Role::Output) {
            for input in self.inputs().filter(|input| input.topic.meets(&output.topic)) {
                if input.pipeline != output.pipeline {
                    edges.entry(output.pipeline).or_default().push((input.pipeline, output));
                }
            }
        }
        let (mut seen, mut mistakes) = (BTreeSet::new(), Vec::new());
        for (start, ..) in &self.pipelines {
            if seen.contains(start) {
                continue;
            }
            let Some(path) = shortest_loop(*start, &edges) else { continue };
            seen.extend(path.iter().map(|(pipeline, _)| *pipeline));
            let mut shown = format!("`{}`", self.name(*start));
            for (nth, (_, output)) in path.iter().enumerate() {
                let next = path.get(nth + 1).map_or(*start, |(pipeline, _)| *pipeline);
                shown.push_str(&format!(" -> {} -> `{}`", output.topic.name, self.name(next)));
            }
            let Some((last, closing)) = path.last() else { continue };
            mistakes.push(
                Mistake::at(Kind::Loop, closing.span.clone(), format!("pipelines form a loop: {shown}"))
                    .label(format!("`{}` closes it here", self.name(*last)))
                    .help("write to another topic; or, if events may go round for ever, add `allow_loop: true` at the top"),
            );
        }
        mistakes
    }
}

/// The shortest way from a pipeline back to itself: each pipeline on it and the output by which it goes on.
fn shortest_loop<'w>(start: usize, edges: &BTreeMap<usize, Vec<(usize, &'w Wire)>>) -> Option<Vec<(usize, &'w Wire)>> {
    let mut came: BTreeMap<usize, (usize, &'w Wire)> = BTreeMap::new();
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for (next, output) in edges.get(&at).into_iter().flatten() {
            if *next == start {
                let mut path = vec![(at, *output)];
                while let Some((before, output)) = path.first().and_then(|(first, _)| came.get(first)) {
                    path.insert(0, (*before, *output));
                }
                return Some(path);
            }
            if !came.contains_key(next) {
                came.insert(*next, (at, *output));
                queue.push_back(*next);
            }
        }
    }
    None
}
