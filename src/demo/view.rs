//! What the demo shows, as text: pure. `screen` puts it on a terminal.

use std::time::Duration;

/// The narrowest picture; a terminal that is narrower wraps it.
const WIDTH_MIN: usize = 40;
/// The widest picture: beyond, the numbers are too far from their names.
const WIDTH_MAX: usize = 120;
/// Below this width the median is left out.
const WIDTH_OF_MEDIAN: usize = 80;

/// Where the demo is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Orders are sent.
    Running,
    /// No more orders; what is on its way ends.
    Draining,
}

/// A topic's numbers.
#[derive(Clone, Debug)]
pub struct TopicFrame {
    /// The topic's name.
    pub topic: String,
    /// Events published in the last second.
    pub rate: f64,
    /// Events published in all.
    pub total: u64,
    /// Whether it takes dead letters.
    pub dead_letter: bool,
}

/// A pipeline's numbers.
#[derive(Clone, Debug)]
pub struct HopFrame {
    /// The pipeline's name.
    pub name: String,
    /// The topics it consumes.
    pub inputs: String,
    /// Events that ended in the last second.
    pub rate: f64,
    /// Events that ended in all.
    pub total: u64,
    /// Half of the last seconds' events took less; `None` when there were none.
    pub p50: Option<Duration>,
    /// All but a hundredth of them took less.
    pub p99: Option<Duration>,
    /// Events that wait for it or are on their way through it.
    pub backlog: u64,
    /// The topics it publishes to.
    pub outputs: Vec<TopicFrame>,
}

/// An event that was seen at the end of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventLine {
    /// Its topic.
    pub topic: String,
    /// Its key and value, as text.
    pub text: String,
}

/// Everything that is shown at one moment.
#[derive(Clone, Debug)]
pub struct Frame {
    /// Where the demo is.
    pub phase: Phase,
    /// The address of the mock cluster.
    pub address: String,
    /// How long the chain has run.
    pub running: Duration,
    /// The topic that orders are sent to.
    pub entry: TopicFrame,
    /// The pipelines, in order.
    pub hops: Vec<HopFrame>,
    /// The newest events, oldest first.
    pub events: Vec<EventLine>,
}

impl Frame {
    /// The picture, a string for each line, none longer than `width`.
    pub fn picture(&self, width: usize) -> Vec<String> {
        let width = width.clamp(WIDTH_MIN, WIDTH_MAX);
        let state = match self.phase {
            Phase::Running => "Ctrl-C ends it with a summary",
            Phase::Draining => "no more orders; finishing what is on its way",
        };
        let mut lines = vec![
            fit(&format!("fluxmill demo  {}  {state}", seconds(self.running)), width),
            fit(&format!("look in: kcat -b {} -L", self.address), width),
            String::new(),
            row("", &["events/s", "events", "p50", "p99", "backlog"], width),
            topic_row("", &self.entry, width),
        ];
        for hop in &self.hops {
            let name = format!("{} > {}", hop.inputs, hop.name);
            let [rate, total, backlog] = [per_second(hop.rate), thousands(hop.total), thousands(hop.backlog)];
            lines.push(row(&name, &[&rate, &total, &latency(hop.p50), &latency(hop.p99), &backlog], width));
            for output in &hop.outputs {
                lines.push(topic_row(if output.dead_letter { "  x " } else { "  > " }, output, width));
            }
        }
        if !self.events.is_empty() {
            lines.push(String::new());
            lines.extend(self.events.iter().map(|event| fit(&format!("{}  {}", event.topic, event.text), width)));
        }
        lines
    }

    /// The same in one line, for a log.
    pub fn line(&self) -> String {
        let mut line = format!("{}  {}", seconds(self.running), topic_text(&self.entry));
        for hop in &self.hops {
            line.push_str(&format!(
                " | {} {}/s p50 {} p99 {} backlog {}",
                hop.name,
                per_second(hop.rate),
                latency(hop.p50),
                latency(hop.p99),
                thousands(hop.backlog)
            ));
            for output in &hop.outputs {
                line.push_str(&format!(", {} {}", thousands(output.total), output.topic));
            }
        }
        line
    }
}

fn topic_text(topic: &TopicFrame) -> String {
    format!("{} {}/s, {} in all", topic.topic, per_second(topic.rate), thousands(topic.total))
}

fn topic_row(indent: &str, topic: &TopicFrame, width: usize) -> String {
    let name = format!("{indent}{}", topic.topic);
    row(&name, &[&per_second(topic.rate), &thousands(topic.total), "", "", ""], width)
}

/// A name, and numbers flush right: events/s, events, p50, p99, backlog.
fn row(name: &str, numbers: &[&str; 5], width: usize) -> String {
    let shown = |at: &usize| *at != 2 || width >= WIDTH_OF_MEDIAN;
    let widths = [9, 11, 9, 9, 9];
    let numbers: String =
        (0..5).filter(shown).map(|at| format!("{:>width$}", numbers[at], width = widths[at])).collect();
    let name_width = width.saturating_sub(numbers.len()).min(48);
    let line = format!("{:<name_width$}{numbers}", fit(name, name_width.saturating_sub(1)));
    line.trim_end().to_owned()
}

/// At most `width` characters; control characters, which would move the cursor, are shown as dots.
pub fn fit(text: &str, width: usize) -> String {
    let clean = |char: char| if char.is_control() { '.' } else { char };
    if text.chars().nth(width).is_none() {
        return text.chars().map(clean).collect();
    }
    text.chars().take(width.saturating_sub(1)).map(clean).chain("…".chars()).collect()
}

/// A number with its thousands apart.
pub fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn per_second(rate: f64) -> String {
    thousands(rate.round() as u64)
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs())
}

fn latency(duration: Option<Duration>) -> String {
    let Some(duration) = duration else { return "-".into() };
    let micros = duration.as_micros() as f64;
    match micros {
        micros if micros < 1_000.0 => format!("{micros:.0} us"),
        micros if micros < 9_950.0 => format!("{:.1} ms", micros / 1e3),
        micros if micros < 999_500.0 => format!("{:.0} ms", micros / 1e3),
        micros => format!("{:.1} s", micros / 1e6),
    }
}

#[cfg(test)]
mod tests;
