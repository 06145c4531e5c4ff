//! What handlers emit, against a model that keeps every event as an object.

use fluxmill_function::testing::{Input, OwnedHeaders, Runner};
use fluxmill_function::{
    Batch, BinaryColumn, BinarySource, Emit, Error, Event, FailureKind, HeaderSource, OrFail, Outcome,
};
use proptest::prelude::*;

/// What a handler does with the event's key or value.
#[derive(Clone, Debug)]
enum Part {
    Inherit,
    Own(Vec<u8>),
    Null,
}

#[derive(Clone, Debug)]
enum HeaderEdit {
    Add(u8, Option<Vec<u8>>),
    Set(u8, Vec<u8>),
    Remove(u8),
}

#[derive(Clone, Debug)]
enum Step {
    Forward(u8),
    Emit {
        output: u8,
        key: Part,
        inherit_headers: bool,
        edits: Vec<HeaderEdit>,
        value: Part,
    },
    /// A draft that is never given a value.
    Abandon(Vec<u8>),
    /// A draft whose value fails half-way.
    Break(Vec<u8>),
}

#[derive(Clone, Debug)]
struct Row {
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: OwnedHeaders,
    steps: Vec<Step>,
    fail: Option<bool>,
}

type Event4 = (u8, Option<Vec<u8>>, OwnedHeaders, Option<Vec<u8>>);

const OUTPUTS: [&str; 3] = ["zero", "one", "two"];

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), 0..4)
}

fn nullable() -> impl Strategy<Value = Option<Vec<u8>>> {
    prop::option::weighted(0.8, bytes())
}

fn part() -> impl Strategy<Value = Part> {
    prop_oneof![3 => Just(Part::Inherit), 2 => bytes().prop_map(Part::Own), 1 => Just(Part::Null)]
}

fn edit() -> impl Strategy<Value = HeaderEdit> {
    prop_oneof![
        (0..3u8, nullable()).prop_map(|(name, value)| HeaderEdit::Add(name, value)),
        (0..3u8, bytes()).prop_map(|(name, value)| HeaderEdit::Set(name, value)),
        (0..3u8).prop_map(HeaderEdit::Remove),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let emit = (0..3u8, part(), any::<bool>(), prop::collection::vec(edit(), 0..3), part()).prop_map(
        |(output, key, inherit_headers, edits, value)| Step::Emit { output, key, inherit_headers, edits, value },
    );
    prop_oneof![4 => (0..3u8).prop_map(Step::Forward), 4 => emit, 1 => bytes().prop_map(Step::Abandon), 1 => bytes().prop_map(Step::Break)]
}

fn row() -> impl Strategy<Value = Row> {
    let headers = prop::collection::vec(((0..3u8).prop_map(|name| vec![name]), nullable()), 0..3);
    let fail = prop::option::weighted(0.2, any::<bool>());
    (nullable(), nullable(), headers, prop::collection::vec(step(), 0..3), fail)
        .prop_map(|(key, value, headers, steps, fail)| Row { key, value, headers, steps, fail })
}

fn input(row: &Row) -> Input {
    let mut input = match &row.value {
        Some(value) => Input::new(value.clone()),
        None => Input::tombstone(),
    };
    if let Some(key) = &row.key {
        input = input.key(key.clone());
    }
    row.headers.iter().fold(input, |input, (name, value)| match value {
        Some(value) => input.header(name.clone(), value.clone()),
        None => input.null_header(name.clone()),
    })
}

/// Does what the steps say, through the SDK.
fn act(event: &Event, out: &mut Emit, steps: &[Step]) {
    for step in steps {
        match step {
            Step::Forward(output) => out.to(OUTPUTS[*output as usize]).forward(event),
            Step::Emit { output, key, inherit_headers, edits, value } => {
                let mut draft = out.to(OUTPUTS[*output as usize]).event();
                if *inherit_headers {
                    draft = draft.headers_of(event);
                }
                for edit in edits {
                    draft = match edit {
                        HeaderEdit::Add(name, Some(value)) => draft.header([*name], value),
                        HeaderEdit::Add(name, None) => draft.null_header([*name]),
                        HeaderEdit::Set(name, value) => draft.set_header([*name], value),
                        HeaderEdit::Remove(name) => draft.remove_header([*name]),
                    };
                }
                draft = match key {
                    Part::Inherit => draft.key("undone").key_of(event),
                    Part::Own(key) => draft.key("overwritten").key(key),
                    Part::Null => draft,
                };
                match value {
                    Part::Inherit => draft.value_of(event),
                    Part::Own(value) => draft.value(value),
                    Part::Null => draft.tombstone(),
                }
            }
            Step::Abandon(bytes) => drop(out.event().key(bytes).header(bytes, bytes)),
            Step::Break(bytes) => {
                let failed = out.event_from(event).key(bytes).value_with(|value| {
                    std::io::Write::write_all(value, bytes)?;
                    Err(Error::reject("half-way"))
                });
                assert_eq!(failed.unwrap_err().reason(), "half-way");
            }
        }
    }
}

/// Does what the steps say, on objects.
fn model(row: &Row) -> Vec<Event4> {
    let pick = |part: &Part, inherited: &Option<Vec<u8>>| match part {
        Part::Inherit => inherited.clone(),
        Part::Own(bytes) => Some(bytes.clone()),
        Part::Null => None,
    };
    let mut events = Vec::new();
    for step in &row.steps {
        match step {
            Step::Forward(output) => {
                events.push((*output, row.key.clone(), row.headers.clone(), row.value.clone()));
            }
            Step::Emit { output, key, inherit_headers, edits, value } => {
                let mut headers = if *inherit_headers { row.headers.clone() } else { Vec::new() };
                for edit in edits {
                    match edit {
                        HeaderEdit::Add(name, value) => headers.push((vec![*name], value.clone())),
                        HeaderEdit::Set(name, value) => {
                            headers.retain(|(other, _)| other != &[*name]);
                            headers.push((vec![*name], Some(value.clone())));
                        }
                        HeaderEdit::Remove(name) => headers.retain(|(other, _)| other != &[*name]),
                    }
                }
                events.push((*output, pick(key, &row.key), headers, pick(value, &row.value)));
            }
            Step::Abandon(_) | Step::Break(_) => {}
        }
    }
    events
}

fn fail(fail: Option<bool>) -> Result<(), Error> {
    match fail {
        None => Ok(()),
        Some(true) => Err(Error::retry("again")),
        Some(false) => Err(Error::reject("never")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn columns_say_what_the_handler_did(rows in prop::collection::vec(row(), 0..24)) {
        let handler = |batch: Batch| -> Result<Outcome, Error> {
            Ok(batch.each(|event, out| {
                let row = &rows[event.row()];
                act(&event, out, &row.steps);
                fail(row.fail)
            }))
        };
        let run = Runner::new(handler).outputs(OUTPUTS).call(rows.iter().map(input)).unwrap();

        let mut published = run.published.iter();
        for (at, row) in rows.iter().enumerate() {
            let failure = run.failure(at);
            prop_assert_eq!(failure.map(|failure| failure.kind == FailureKind::Retry), row.fail);
            if row.fail.is_some() {
                continue;
            }
            for expected in model(row) {
                let event = published.next().expect("another published event");
                let output = OUTPUTS.iter().position(|name| *name == event.output).unwrap() as u8;
                let actual = (output, event.key.clone(), event.headers.clone(), event.value.clone());
                prop_assert_eq!((event.row, actual), (at, expected));
            }
        }
        prop_assert!(published.next().is_none());
        let model_dropped = rows.iter().enumerate().filter(|(_, row)| row.fail.is_none() && model(row).is_empty());
        prop_assert_eq!(run.dropped, model_dropped.map(|(at, _)| at).collect::<Vec<_>>());
    }
}

/// Runs a handler and gives back what crosses the boundary, to see what was copied.
fn outcome(inputs: Vec<Input>, handler: impl Fn(Event, &mut Emit) -> Result<(), Error>) -> Outcome {
    let slot = std::cell::RefCell::new(None);
    let keep = |batch: Batch| -> Result<Outcome, Error> {
        slot.replace(Some(batch.each(&handler)));
        Ok(Outcome {
            causes: vec![],
            outputs: vec![],
            keys: BinarySource::Inherit,
            values: BinarySource::Inherit,
            headers: HeaderSource::Inherit,
            failures: vec![],
        })
    };
    Runner::new(keep).outputs(OUTPUTS).call(inputs).unwrap();
    slot.into_inner().unwrap()
}

fn three() -> Vec<Input> {
    (0..3).map(|row| Input::new(format!("value {row}")).key(format!("key {row}")).header("h", "1")).collect()
}

#[test]
fn forwarding_copies_nothing() {
    let outcome = outcome(three(), |event, out| {
        if event.row() != 1 {
            out.forward(&event);
        }
        Ok(())
    });
    assert_eq!(outcome.causes, [0, 2]);
    assert!(outcome.outputs.is_empty());
    assert!(matches!(outcome.keys, BinarySource::Inherit));
    assert!(matches!(outcome.values, BinarySource::Inherit));
    assert!(matches!(outcome.headers, HeaderSource::Inherit));
}

#[test]
fn only_the_column_that_differs_crosses() {
    let outcome = outcome(three(), |event, out| {
        match event.row() {
            1 => out.to("one").event_from(&event).value("other"),
            _ => out.forward(&event),
        }
        Ok(())
    });
    assert_eq!(outcome.outputs, [0, 1, 0]);
    assert!(matches!(outcome.keys, BinarySource::Inherit));
    assert!(matches!(outcome.headers, HeaderSource::Inherit));
    let BinarySource::Replace(BinaryColumn { offsets, data, validity }) = outcome.values else { panic!("values") };
    assert_eq!((offsets, data, validity), (vec![0, 7, 12, 19], b"value 0othervalue 2".to_vec(), vec![]));
}

#[test]
fn an_event_taken_back_leaves_the_column_inherited() {
    let outcome = outcome(three(), |event, out| {
        if event.row() == 1 {
            out.event().key("own").header("own", "1").value("own");
            return Err(Error::reject("no"));
        }
        out.forward(&event);
        Ok(())
    });
    assert_eq!(outcome.causes, [0, 2]);
    assert!(matches!(outcome.keys, BinarySource::Inherit));
    assert!(matches!(outcome.values, BinarySource::Inherit));
    assert!(matches!(outcome.headers, HeaderSource::Inherit));
}

#[test]
fn no_key_where_there_was_none_stays_inherited() {
    let outcome = outcome(vec![Input::new("a"), Input::new("b")], |event, out| {
        out.event().value_of(&event);
        Ok(())
    });
    assert!(matches!(outcome.keys, BinarySource::Inherit));
    assert!(matches!(outcome.headers, HeaderSource::Inherit));
}

#[test]
fn an_unknown_output_rejects_the_event_and_names_those_there_are() {
    fn lost(event: Event, out: &mut Emit) -> Result<(), Error> {
        out.forward(&event);
        if event.row() == 1 {
            out.to("reviews").forward(&event);
        }
        Ok(())
    }
    let run = Runner::new(lost).outputs(["approved", "review"]).call(three()).unwrap();
    assert_eq!(run.published.iter().map(|event| event.row).collect::<Vec<_>>(), [0, 2]);
    let failure = run.failure(1).unwrap();
    assert_eq!(failure.kind, FailureKind::Reject);
    assert_eq!(failure.reason, r#"no output "reviews": the pipeline has "approved", "review""#);
}

#[test]
fn events_of_other_rows_are_copied_not_inherited() {
    fn backwards(batch: Batch) -> Result<Outcome, Error> {
        let events: Vec<Event> = batch.events().rev().collect();
        Ok(batch.each(|event, out| {
            out.forward(&events[event.row()]);
            Ok(())
        }))
    }
    let mut inputs = three();
    inputs[0] = Input::tombstone();
    let run = Runner::new(backwards).call(inputs).unwrap();
    let keys: Vec<_> = run.published.iter().map(|event| event.key.clone()).collect();
    assert_eq!(keys, [Some(b"key 2".to_vec()), Some(b"key 1".to_vec()), None]);
    assert_eq!(run.published[2].value, None);
    assert_eq!((run.published[0].headers.len(), run.published[2].headers.len()), (1, 0));
}

#[test]
fn config_is_read_by_name_and_may_be_missing() {
    fn limit(event: Event, out: &mut Emit) -> Result<(), Error> {
        let limit: usize = out.config("limit").or_reject("config: limit is missing")?.parse().or_reject("limit")?;
        let prefix = out.config("prefix").unwrap_or("none");
        if event.text()?.len() <= limit {
            out.event().value(prefix);
        }
        Ok(())
    }
    let inputs = || [Input::new("abc"), Input::new("abcdef")];
    let run = Runner::new(limit).config("limit", "3").config("prefix", "p").call(inputs()).unwrap();
    assert_eq!((run.published.len(), run.published[0].text(), run.dropped), (1, "p", vec![1]));
    let run = Runner::new(limit).call(inputs()).unwrap();
    assert_eq!(run.failures[1].reason, "config: limit is missing");
}

#[test]
fn log_lines_reach_the_runner() {
    fn chatty(event: Event, _: &mut Emit) -> Result<(), Error> {
        let row = event.row();
        fluxmill_function::warn!(row, twice = row * 2; "seen {}", event.text()?);
        fluxmill_function::debug!("plain");
        Ok(())
    }
    let run = Runner::new(chatty).call([Input::new("a"), Input::new("b")]).unwrap();
    assert_eq!(run.logs.len(), 4);
    assert_eq!(run.logs[2].message, "seen b");
    assert_eq!(run.logs[2].fields, [("row".into(), "1".into()), ("twice".into(), "2".into())]);
}

#[test]
fn the_last_header_of_a_name_counts() {
    fn last(event: Event, out: &mut Emit) -> Result<(), Error> {
        out.event().value(event.header("h").unwrap_or(b"none"));
        Ok(())
    }
    let run = Runner::new(last)
        .call([Input::new("").header("h", "1").header("h", "2"), Input::new("").header("h", "1").null_header("h")])
        .unwrap();
    assert_eq!((run.published[0].text(), run.published[1].text()), ("2", "none"));
}

#[test]
#[should_panic(expected = "the host would refuse this outcome: row 7 of a batch of 3")]
fn an_outcome_that_cannot_be_true_fails_the_test() {
    fn liar(batch: Batch) -> Result<Outcome, Error> {
        let mut outcome = batch.each(|event, out| {
            out.forward(&event);
            Ok(())
        });
        outcome.causes[0] = 7;
        Ok(outcome)
    }
    let _ = Runner::new(liar).call(three());
}
