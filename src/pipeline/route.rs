//! From the outcomes of a batch to what is published where: pure.

use std::sync::Arc;

use crate::event::{EventBatch, Outcome, Publication, Rows};

/// One call that succeeded: the rows of the batch it was given, and what came of them.
#[derive(Clone, Debug)]
pub struct Part {
    /// The rows of the batch that were called, ascending; row i of `input` is row `rows[i]` of the batch.
    pub rows: Vec<u32>,
    /// What the function received.
    pub input: EventBatch,
    /// What it returned.
    pub outcome: Arc<Outcome>,
    /// Which attempt this was, from 1.
    pub attempt: u32,
}

/// A publication on its way to one output.
#[derive(Clone, Debug)]
pub struct Routed {
    /// The pipeline's output.
    pub output: usize,
    /// Which part it is of.
    pub part: usize,
    /// What is published.
    pub publication: Publication,
}

/// Deals published events to outputs. Publishing the result in order keeps, for each output, the order of the causing
/// rows; events of one call keep the order in which the function returned them.
pub fn route(parts: &[Part], outputs: usize) -> Vec<Routed> {
    match parts {
        [part] => route_part(0, part, outputs),
        parts => route_merged(parts, outputs),
    }
}

/// As [`route`], for the last part alone.
pub fn route_last(parts: &[Part], outputs: usize) -> Vec<Routed> {
    parts.last().map_or_else(Vec::new, |part| route_part(parts.len() - 1, part, outputs))
}

fn route_part(index: usize, part: &Part, outputs: usize) -> Vec<Routed> {
    let routed = |output, rows| Routed {
        output,
        part: index,
        publication: Publication { input: part.input.clone(), outcome: part.outcome.clone(), rows },
    };
    let outcome = &part.outcome;
    if outcome.is_empty() {
        return Vec::new();
    }
    if outcome.outputs.is_empty() || outcome.outputs.iter().all(|&output| output == outcome.outputs[0]) {
        return vec![routed(outcome.output(0), Rows::All)];
    }
    let mut rows: Vec<Vec<u32>> = vec![Vec::new(); outputs];
    for (published, &output) in outcome.outputs.iter().enumerate() {
        rows[output as usize].push(published as u32);
    }
    let used = rows.into_iter().enumerate().filter(|(_, rows)| !rows.is_empty());
    used.map(|(output, rows)| routed(output, Rows::Some(rows))).collect()
}

/// After halving or retries a batch has several parts; their events are merged in the order of the rows, so that a
/// row that was retried does not fall behind its successors.
fn route_merged(parts: &[Part], outputs: usize) -> Vec<Routed> {
    let mut order: Vec<(u32, usize, u32)> = Vec::new();
    for (index, part) in parts.iter().enumerate() {
        for (published, &cause) in part.outcome.causes.iter().enumerate() {
            order.push((part.rows[cause as usize], index, published as u32));
        }
    }
    order.sort_by_key(|&(row, _, _)| row);
    let mut routed: Vec<Routed> = Vec::new();
    let mut last: Vec<Option<usize>> = vec![None; outputs];
    for (_, index, published) in order {
        let part = &parts[index];
        let output = part.outcome.output(published as usize);
        match last[output] {
            // A run of one part grows; another part's event begins a new run.
            Some(at) if routed[at].part == index => {
                if let Rows::Some(rows) = &mut routed[at].publication.rows {
                    rows.push(published);
                }
            }
            _ => {
                last[output] = Some(routed.len());
                let rows = Rows::Some(vec![published]);
                let publication = Publication { input: part.input.clone(), outcome: part.outcome.clone(), rows };
                routed.push(Routed { output, part: index, publication });
            }
        }
    }
    routed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::Slot;
    use crate::event::{BatchBuilder, ColumnSource, HeaderSource, Origin};

    fn batch(values: &[&str]) -> EventBatch {
        let mut builder = BatchBuilder::default();
        for (offset, value) in values.iter().enumerate() {
            let origin = Origin { slot: Slot(0), offset: offset as i64 };
            builder.append(origin, None, Some(value.as_bytes()), 0, std::iter::empty());
        }
        builder.finish()
    }

    fn part(batch: &EventBatch, rows: &[u32], causes: &[u32], outputs: &[u8]) -> Part {
        let outcome = Outcome {
            causes: causes.to_vec(),
            outputs: outputs.to_vec(),
            keys: ColumnSource::Inherit,
            values: ColumnSource::Inherit,
            headers: HeaderSource::Inherit,
            failures: Vec::new(),
        };
        Part { rows: rows.to_vec(), input: batch.select(rows), outcome: Arc::new(outcome), attempt: 1 }
    }

    fn published(routed: &[Routed], output: usize) -> String {
        let mine = routed.iter().filter(|routed| routed.output == output);
        let events = mine.flat_map(|routed| (0..routed.publication.len()).map(|at| routed.publication.event(at).value));
        events.map(|value| String::from_utf8(value.unwrap().to_vec()).unwrap()).collect()
    }

    #[test]
    fn one_part_is_split_by_output() {
        let batch = batch(&["a", "b", "c"]);
        let routed = route(&[part(&batch, &[0, 1, 2], &[0, 1, 1, 2], &[0, 1, 0, 1])], 2);
        assert_eq!((published(&routed, 0), published(&routed, 1)), ("ab".into(), "bc".into()));
    }

    #[test]
    fn a_retried_row_keeps_its_place() {
        let batch = batch(&["a", "b", "c", "d"]);
        let first = part(&batch, &[0, 1, 2, 3], &[0, 2, 3], &[]);
        let retried = part(&batch, &[1], &[0, 0], &[]);
        let routed = route(&[first, retried], 1);
        assert_eq!(published(&routed, 0), "abbcd");
        assert_eq!(routed.len(), 3, "runs of one part stay together");
    }

    #[test]
    fn nothing_published_is_nothing_routed() {
        let batch = batch(&["a"]);
        assert!(route(&[part(&batch, &[0], &[], &[])], 1).is_empty());
        assert!(route(&[], 1).is_empty());
    }
}
