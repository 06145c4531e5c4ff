//! `fluxmill graph`: draws the chain. Pure text; refuses to lay anything out.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::cli::load_or_report;
use crate::spec::{ChainSpec, LastResort, PipelineSpec, StreamSpec, TargetSpec, subjects_meet};

/// Draw a chain: its topics and pipelines, dead letters included.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The pipeline file.
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// How to draw it.
    #[arg(long, value_enum, default_value_t = Format::Ascii)]
    format: Format,
}

/// How to draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Text for a terminal.
    Ascii,
    /// A Mermaid flowchart, for Markdown.
    Mermaid,
    /// A Graphviz digraph.
    Dot,
}

impl Args {
    /// Runs the command.
    ///
    /// # Errors
    /// When standard output cannot be written.
    pub fn execute(self) -> anyhow::Result<ExitCode> {
        let loaded = match load_or_report(&self.file) {
            Ok(loaded) => loaded,
            Err(code) => return Ok(code),
        };
        std::io::stdout().write_all(draw(&loaded.spec, self.format).as_bytes())?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Draws the chain.
pub fn draw(chain: &ChainSpec, format: Format) -> String {
    match format {
        Format::Ascii => ascii(chain),
        Format::Mermaid => mermaid(chain),
        Format::Dot => dot(chain),
    }
}

/// A way that events take from or to a pipeline.
struct Edge {
    topic: String,
    label: String,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    In,
    Out,
    Dead,
}

/// With several connections a topic's name alone is not enough.
fn topic_name(chain: &ChainSpec, connection: &str, topic: &str) -> String {
    if chain.connections.len() > 1 { format!("{connection}/{topic}") } else { topic.to_owned() }
}

/// Where events go: a topic; or a subject, or the stream that stores it where the file lists that, so that it is one
/// place with what is read from there.
fn place(chain: &ChainSpec, target: &TargetSpec) -> String {
    let (TargetSpec::Nats { connection, subject, .. } | TargetSpec::CoreNats { connection, subject }) = target else {
        return target.place().to_owned();
    };
    let stores = |stream: &&StreamSpec| {
        stream.connection == *connection && stream.subjects.iter().any(|stored| subjects_meet(stored, subject))
    };
    chain.streams.iter().find(stores).map_or_else(|| subject.clone(), |stream| stream.name.clone())
}

fn edges(chain: &ChainSpec, pipeline: &PipelineSpec) -> Vec<Edge> {
    let from = pipeline.source.connection();
    let edge = |connection: &str, topic: &str, label: &str, kind| Edge {
        topic: topic_name(chain, connection, topic),
        label: label.to_owned(),
        kind,
    };
    let mut edges: Vec<_> = pipeline.source.places().iter().map(|input| edge(from, input, "", Kind::In)).collect();
    for output in &pipeline.outputs {
        let label = if pipeline.outputs.len() > 1 { output.name.as_str() } else { "" };
        edges.push(edge(output.target.connection(), &place(chain, &output.target), label, Kind::Out));
    }
    if let LastResort::DeadLetter(target) = &pipeline.on_error.then {
        edges.push(edge(target.connection(), &place(chain, target), "dead letter", Kind::Dead));
    }
    edges
}

fn ascii(chain: &ChainSpec) -> String {
    let mut out = format!("{}\n", chain.name);
    for pipeline in &chain.pipelines {
        let edges = edges(chain, pipeline);
        let inputs: Vec<_> =
            edges.iter().filter(|edge| edge.kind == Kind::In).map(|edge| edge.topic.as_str()).collect();
        let width = inputs.iter().map(|topic| topic.chars().count()).max().unwrap_or(0);
        let mut right: Vec<String> = Vec::new();
        for edge in edges.iter().filter(|edge| edge.kind != Kind::In) {
            let arrow = match (edge.kind, edge.label.as_str()) {
                (Kind::Dead, _) => "- - dead letter - ->".to_owned(),
                (_, "") => "-->".to_owned(),
                (_, name) => format!("-- {name} -->"),
            };
            right.push(format!("{arrow} {}", edge.topic));
        }
        match &pipeline.on_error.then {
            LastResort::Stop => right.push("- - failed: stop".to_owned()),
            LastResort::Drop => right.push("- - failed: drop".to_owned()),
            LastResort::DeadLetter(_) => {}
        }
        let name = format!("[{}]", pipeline.name);
        out.push('\n');
        for line in 0..inputs.len().max(right.len()) {
            let left = inputs.get(line).map_or(String::new(), |topic| format!("{topic:<width$} -->"));
            let middle = if line == 0 { name.as_str() } else { "" };
            let text = format!(
                "  {left:<left_width$} {middle:<middle_width$} {}",
                right.get(line).map_or("", String::as_str),
                left_width = width + 4,
                middle_width = name.chars().count(),
            );
            let _ = writeln!(out, "{}", text.trim_end());
        }
    }
    out
}

/// Topics in the order in which they are first met, so that drawings do not jump.
fn topics(chain: &ChainSpec) -> Vec<String> {
    let mut topics: Vec<String> = Vec::new();
    for edge in chain.pipelines.iter().flat_map(|pipeline| edges(chain, pipeline)) {
        if !topics.contains(&edge.topic) {
            topics.push(edge.topic);
        }
    }
    topics
}

fn mermaid(chain: &ChainSpec) -> String {
    let topics = topics(chain);
    let id = |topic: &str| topics.iter().position(|known| known == topic).map_or(0, |at| at);
    let mut out = "flowchart LR\n".to_owned();
    for (nth, topic) in topics.iter().enumerate() {
        let _ = writeln!(out, "  t{nth}[(\"{topic}\")]");
    }
    for (nth, pipeline) in chain.pipelines.iter().enumerate() {
        let _ = writeln!(out, "  p{nth}[\"{}\"]", pipeline.name);
        for edge in edges(chain, pipeline) {
            let topic = id(&edge.topic);
            let _ = match (edge.kind, edge.label.as_str()) {
                (Kind::In, _) => writeln!(out, "  t{topic} --> p{nth}"),
                (Kind::Out, "") => writeln!(out, "  p{nth} --> t{topic}"),
                (Kind::Out, label) => writeln!(out, "  p{nth} -- \"{label}\" --> t{topic}"),
                (Kind::Dead, label) => writeln!(out, "  p{nth} -. \"{label}\" .-> t{topic}"),
            };
        }
    }
    out
}

fn dot(chain: &ChainSpec) -> String {
    let mut out = format!("digraph \"{}\" {{\n  rankdir=LR;\n", chain.name);
    for topic in topics(chain) {
        let _ = writeln!(out, "  \"topic {topic}\" [label=\"{topic}\", shape=cylinder];");
    }
    for pipeline in &chain.pipelines {
        let name = &pipeline.name;
        let _ = writeln!(out, "  \"pipeline {name}\" [label=\"{name}\", shape=box];");
        for edge in edges(chain, pipeline) {
            let (topic, label) = (format!("\"topic {}\"", edge.topic), &edge.label);
            let _ = match edge.kind {
                Kind::In => writeln!(out, "  {topic} -> \"pipeline {name}\";"),
                Kind::Out if label.is_empty() => writeln!(out, "  \"pipeline {name}\" -> {topic};"),
                Kind::Out => writeln!(out, "  \"pipeline {name}\" -> {topic} [label=\"{label}\"];"),
                Kind::Dead => writeln!(out, "  \"pipeline {name}\" -> {topic} [label=\"{label}\", style=dashed];"),
            };
        }
    }
    out.push_str("}\n");
    out
}
