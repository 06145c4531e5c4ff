//! What goes in comes out: columns cross both ways unchanged.

use std::sync::Arc;

use fluxmill::event::{EventBatch, Outcome, Publication, Rows};
use fluxmill::function::{CallError, Transform};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::guest;
use crate::support::{LIMITS, Row, batch, call, engine, slice, try_load, two, with_runtime};

/// Compares every event of a batch with what was published for it.
fn assert_unchanged(input: &EventBatch, outcome: Outcome) {
    assert_eq!(outcome.len(), input.len());
    let published = Publication { input: input.clone(), outcome: Arc::new(outcome), rows: Rows::All };
    for row in 0..input.len() {
        let (was, is) = (input.row(row), published.event(row));
        assert_eq!((was.key, was.value, was.timestamp), (is.key, is.value, is.timestamp), "row {row}");
        assert_eq!(was.headers.collect::<Vec<_>>(), is.headers.collect::<Vec<_>>(), "row {row}");
    }
}

fn bytes() -> impl Strategy<Value = Option<Vec<u8>>> {
    proptest::option::weighted(0.8, vec(any::<u8>(), 0..20))
}

fn row() -> impl Strategy<Value = Row> {
    let headers = prop_oneof![3 => Just(vec![]), 1 => vec((vec(any::<u8>(), 0..6), bytes()), 0..4)];
    (bytes(), bytes(), headers, any::<i64>())
}

#[test]
fn any_batch_and_any_slice_of_it_comes_back_equal() {
    let engine = engine();
    let identity = try_load(&engine, &guest::identity(), LIMITS).unwrap();
    let mut runner = TestRunner::new(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(200) });
    let result = with_runtime(&engine, |runtime| {
        runner.run(&(vec(row(), 0..40), any::<(u16, u16)>()), |(rows, (from, count))| {
            let whole = batch(&rows);
            let from = from as usize % (rows.len() + 1);
            let part = slice(&whole, from, count as usize % (rows.len() - from + 1));
            for input in [whole, part] {
                let outcome = runtime.block_on(identity.call(&input)).unwrap();
                assert_unchanged(&input, outcome);
            }
            Ok(())
        })
    });
    result.unwrap();
}

#[test]
fn tombstones_nulls_and_headers_cross_both_ways() {
    let input = batch(&[
        (None, None, vec![], 0),
        (Some(vec![]), Some(vec![]), vec![(b"trace".into(), Some(b"1".into())), (b"trace".into(), None)], -1),
        (Some(b"k".into()), None, vec![(vec![0xff], Some(vec![]))], i64::MAX),
        (None, Some(vec![0; 300]), vec![], i64::MIN),
    ]);
    assert_unchanged(&input, call(&guest::identity(), &input).unwrap());
}

#[test]
fn timestamps_go_in() {
    let input = batch(&[-5, 0, i64::MAX].map(|timestamp| (None, None, vec![], timestamp)));
    let outcome = call(&guest::timestamps(), &input).unwrap();
    let published = Publication { input, outcome: Arc::new(outcome), rows: Rows::All };
    let seen: Vec<_> = (0..3).map(|row| published.event(row).value.unwrap().to_vec()).collect();
    assert_eq!(seen, [-5, 0, i64::MAX].map(|timestamp: i64| timestamp.to_le_bytes().to_vec()));
}

#[test]
fn an_empty_batch_is_a_call_like_any_other() {
    assert!(call(&guest::identity(), &batch(&[])).unwrap().is_empty());
}

#[test]
fn an_outcome_of_nothing_drops_everything() {
    let outcome = call(&guest::returns(&[], &[]), &two()).unwrap();
    assert!(outcome.is_empty() && outcome.failures.is_empty());
}

#[test]
fn settings_come_from_the_pipeline_file() {
    let get = r#"(import "fluxmill:function/settings@0.1.0" "get" (func $get (param i32 i32 i32)))"#;
    let outputs = r#"(import "fluxmill:function/settings@0.1.0" "outputs" (func $outputs (param i32)))"#;
    // Rejects the batch with the text at ($p) and its length beside it.
    let reject = "(i32.store (i32.const 1024) (i32.const 1))
        (i32.store (i32.const 1028) (i32.const 1))
        (i32.store (i32.const 1032) (i32.load (local.get $p)))
        (i32.store (i32.const 1036) (i32.load offset=4 (local.get $p)))
        (i32.const 1024)";
    let said = |component: Vec<u8>| match call(&component, &two()) {
        Err(CallError::Reject(reason)) => reason,
        other => panic!("{other:?}"),
    };
    let present =
        format!("(call $get (i32.const 4096) (i32.const 8) (i32.const 2048)) (local.set $p (i32.const 2052)) {reject}");
    assert_eq!(said(guest::function_with(get, "(data (i32.const 4096) \"currency\")", &present)), "EUR");
    // Absent: the option is none, and the words after it stay zero.
    assert_eq!(said(guest::function_with(get, "(data (i32.const 4096) \"nonsense\")", &present)), "");
    let second = format!(
        "(call $outputs (i32.const 2048)) (local.set $p (i32.add (i32.load (i32.const 2048)) (i32.const 8))) {reject}"
    );
    assert_eq!(said(guest::function_with(outputs, "", &second)), "review");
}
