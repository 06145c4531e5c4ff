//! Pipeline files that tests write: one pipeline, short timeouts, everything else as a user would have it.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// A pipeline file with one pipeline, `main`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chain {
    /// Where events come from; the consumer group has the same name.
    pub(crate) from: String,
    /// Where they go.
    pub(crate) to: String,
    /// Where they go that fail.
    pub(crate) dead: String,
    /// The component; without one the events are copied.
    pub(crate) wasm: Option<PathBuf>,
    /// Further settings of the client, such as `batch.size: "9000"`.
    pub(crate) properties: Vec<&'static str>,
    /// Further lines for the connection, such as `tls: { ca: ca.pem }`.
    pub(crate) connection: Vec<String>,
    /// What the connection says about its client.
    pub(crate) client: Option<String>,
    /// The static member of the consumer group.
    pub(crate) instance: Option<&'static str>,
    /// Further lines for the pipeline, such as `lanes: 2`.
    pub(crate) pipeline: Vec<String>,
    /// Further lines for the function, such as `limits: { timeout: 1s }`.
    pub(crate) function: Vec<String>,
}

impl Chain {
    /// The file. A member of its consumer group that was killed is missed after six seconds, and members hear of each other soon.
    pub(crate) fn yaml(&self) -> String {
        let mut text =
            String::from("name: test\nconnections:\n  main:\n    kafka:\n      brokers: [\"${KAFKA_BROKERS}\"]\n");
        let properties: String = self.properties.iter().map(|property| format!(", {property}")).collect();
        text += "      properties: { session.timeout.ms: \"6000\", heartbeat.interval.ms: \"300\"";
        text += &format!("{properties} }}\n");
        for line in self.client.iter().chain(&self.connection) {
            text += &format!("      {line}\n");
        }
        let Self { from, to, dead, .. } = self;
        text += "pipelines:\n  main:\n";
        let instance = self.instance.map_or(String::new(), |instance| format!(", instance: {instance}"));
        text += &format!("    from: {{ kafka: {{ topics: [{from}], group: {from}{instance} }} }}\n");
        if let Some(wasm) = &self.wasm {
            text += &format!("    function:\n      wasm: {}\n", wasm.display());
            for line in &self.function {
                text += &format!("      {line}\n");
            }
        }
        text += &format!("    to: {{ kafka: {{ topic: {to} }} }}\n    on_error:\n");
        text += "      retry: { attempts: 2, backoff: 10ms..50ms }\n";
        text += &format!("      then: {{ dead_letter: {{ kafka: {{ topic: {dead} }} }} }}\n");
        for line in &self.pipeline {
            text += &format!("    {line}\n");
        }
        text
    }
}

/// Puts a setting, such as `client: librdkafka`, into the one connection of a pipeline file that somebody else wrote.
///
/// # Errors
/// When the file names no brokers.
pub(crate) fn with_setting(text: &str, setting: &str) -> anyhow::Result<String> {
    let brokers = text.find("brokers:").context("the file names no brokers")?;
    let mut text = text.to_owned();
    // In a flow mapping `{ brokers: ... }` and in a block mapping alike.
    let line = text[..brokers].rfind('\n').map_or(0, |end| end + 1);
    let end =
        if text[line..brokers].contains('{') { ", ".to_owned() } else { format!("\n{}", " ".repeat(brokers - line)) };
    text.insert_str(brokers, &format!("{setting}{end}"));
    Ok(text)
}

/// A path in the repository.
pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A component of tests/guests.
pub(crate) fn guest(name: &str) -> PathBuf {
    repository("tests/guests").join(name).with_extension("wasm")
}
