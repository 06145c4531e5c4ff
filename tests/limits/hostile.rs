//! Calls that must end in a fault, and what they must not do meanwhile.

use std::time::Duration;

use fluxmill::event::{Failure, FailureKind};
use fluxmill::function::{CallError, Fault, Transform};
use fluxmill::spec::FunctionLimits;

use crate::guest::{self, DATA, RET, at, words};
use crate::support::{LIMITS, LONG, SHORT, as_fault, block_on, call, call_with, engine, fault, logged, try_load, two};

const LOG: &str = r#"(import "fluxmill:function/log@0.1.0" "write" (func $log (param i32 i32 i32 i32 i32)))"#;

#[test]
fn a_trap_says_what_and_where() {
    let deep = "(func $deep unreachable) (func $shallow (call $deep))";
    let (kind, reason) = fault(&guest::function_with("", deep, "(call $shallow) (i32.const 0)"));
    assert_eq!(kind, Fault::Trap);
    assert_eq!(reason, "wasm `unreachable` instruction executed; in deep < shallow < transform");
}

#[test]
fn a_stack_overflow_is_a_trap() {
    let deep = "(func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (i32.const 1)))";
    let (kind, reason) = fault(&guest::function_with("", deep, "(call $deep (local.get $in))"));
    assert_eq!((kind, reason.contains("call stack exhausted")), (Fault::Trap, true), "{reason}");
}

#[test]
fn an_endless_loop_times_out_and_others_go_on() {
    let engine = engine();
    let endless = guest::function("(loop $again (br $again)) (i32.const 0)");
    let endless = try_load(&engine, &endless, FunctionLimits { timeout: LONG, ..LIMITS }).unwrap();
    let identity = try_load(&engine, &guest::identity(), LIMITS).unwrap();
    block_on(&engine, async {
        // One thread, and the endless call is polled first: the other ends only because this one yields.
        let batch = two();
        for _ in 0..3 {
            tokio::select! {
                biased;
                result = endless.call(&batch) => panic!("ended: {result:?}"),
                outcome = identity.call(&batch) => assert_eq!(outcome.unwrap().len(), 2),
            }
        }
    });
    let short = guest::function("(loop $again (br $again)) (i32.const 0)");
    let (kind, reason) = as_fault(call_with(&short, FunctionLimits { timeout: SHORT, ..LIMITS }, &two()));
    assert_eq!((kind, &*reason), (Fault::Timeout, "the function ran longer than limits.timeout (100ms)"));
}

#[test]
fn a_function_that_waits_times_out() {
    let imports = r#"(import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $timer (param i64) (result i32)))
        (import "wasi:io/poll@0.2.0" "[method]pollable.block" (func $block (param i32)))"#;
    let sleep = |nanoseconds: u64| {
        let body = format!("(call $block (call $timer (i64.const {nanoseconds}))) (i32.const {RET})");
        guest::function_with(imports, "", &body)
    };
    let limits = FunctionLimits { timeout: SHORT, ..LIMITS };
    assert_eq!(as_fault(call_with(&sleep(3_600_000_000_000), limits, &two())).0, Fault::Timeout);
    assert!(call(&sleep(1_000_000), &two()).unwrap().is_empty());
}

#[test]
fn handles_are_bounded() {
    let imports =
        r#"(import "wasi:clocks/monotonic-clock@0.2.0" "subscribe-duration" (func $timer (param i64) (result i32)))"#;
    let hoard = "(loop $again (drop (call $timer (i64.const 1))) (br $again)) (i32.const 0)";
    let (kind, _) = fault(&guest::function_with(imports, "", hoard));
    assert_eq!(kind, Fault::Trap);
}

#[test]
fn a_loop_before_the_call_times_out_too() {
    let start = "(func $start (loop $again (br $again))) (start $start)";
    let component = guest::function_with("", start, "(i32.const 1024)");
    let limits = FunctionLimits { timeout: SHORT, ..LIMITS };
    assert_eq!(as_fault(call_with(&component, limits, &two())).0, Fault::Timeout);
}

#[test]
fn memory_beyond_the_limit_is_a_memory_fault() {
    let hog = "(block $full (loop $more
        (br_if $full (i32.eq (memory.grow (i32.const 16)) (i32.const -1))) (br $more))) unreachable";
    let (kind, reason) = fault(&guest::function(hog));
    assert_eq!(kind, Fault::Memory);
    assert_eq!(reason, "the function asked for 8519680 bytes of memory, limits.memory allows 8388608");

    // Memories that are each within the limit, but not together.
    let twice = guest::function_with("", "(memory $other 100)", "(memory.size $other)");
    let limits = FunctionLimits { memory: 100 * 65_536, ..LIMITS };
    assert_eq!(as_fault(call_with(&twice, limits, &two())).0, Fault::Memory);

    // One that is refused memory and copes did nothing wrong.
    let copes = format!("(drop (memory.grow (i32.const 60000))) (i32.const {RET})");
    assert!(call(&guest::function(&copes), &two()).unwrap().is_empty());
}

#[test]
fn a_batch_that_does_not_fit_into_memory_is_a_memory_fault() {
    let large = crate::support::batch(&[(None, Some(vec![7; 200_000]), vec![], 0)]);
    let limits = FunctionLimits { memory: 128 << 10, ..LIMITS };
    assert_eq!(as_fault(call_with(&guest::identity(), limits, &large)).0, Fault::Memory);
}

#[test]
fn a_table_that_grows_for_ever_is_refused() {
    let grow = "(table $t 1 funcref)";
    let body = "(if (result i32) (i32.eq (table.grow $t (ref.null func) (i32.const 100000)) (i32.const -1))
        (then (i32.const 1024)) (else unreachable))";
    assert!(call(&guest::function_with("", grow, body), &two()).unwrap().is_empty());
}

#[test]
fn more_output_than_the_limit_is_an_output_fault() {
    let values = at::VALUES + at::REPLACE;
    let flood = |bytes: u32| {
        let words = [(at::VALUES, 1), (values + at::BYTES, 0), (values + at::BYTES + 4, bytes)];
        let grow = "(drop (memory.grow (i32.const 100)))";
        let stores: String = words
            .iter()
            .map(|(offset, word)| format!("(i32.store (i32.const {}) (i32.const {}))", RET + offset, *word as i32))
            .collect();
        fault(&guest::function(&format!("{grow} {stores} (i32.const {RET})")))
    };
    let (kind, reason) = flood(4 << 20);
    assert_eq!((kind, &*reason), (Fault::Output, "the function returned more than limits.output (1048576 bytes)"));
    let (kind, reason) = flood(u32::MAX);
    assert_eq!((kind, reason.contains("out of bounds")), (Fault::Output, true), "{reason}");

    // Many small lists of one column count together: the limit is for everything that a call returns.
    let failures = [(at::FAILURES, DATA), (at::FAILURES + 4, 100_000)];
    let (kind, reason) = fault(&guest::returns(&failures, &[]));
    assert_eq!(kind, Fault::Output, "{reason}");
}

#[test]
fn a_result_that_points_nowhere_is_an_output_fault() {
    for pointer in [u32::MAX - 3, 65_536, 1_025] {
        let (kind, reason) = fault(&guest::function(&format!("(i32.const {})", pointer as i32)));
        assert_eq!(kind, Fault::Output, "{reason}");
    }
    let reason = [(at::FAILURES, DATA), (at::FAILURES + 4, 1)];
    // row 0, reject, a reason that is no UTF-8
    let mut failure = words(&[0, 1, DATA + 16, 1]);
    failure.push(0xff);
    let (kind, reason) = fault(&guest::returns(&reason, &failure));
    assert_eq!((kind, reason.contains("utf-8")), (Fault::Output, true), "{reason}");
}

#[test]
fn lies_about_columns_are_output_faults() {
    let list = |offset: u32, index: u32, length: u32| [(offset, DATA + 4 * index), (offset + 4, length)];
    let causes = list(at::CAUSES, 0, 2);
    let values = at::VALUES + at::REPLACE;
    let headers = at::HEADERS + at::REPLACE;
    let lie = |parts: &[&[(u32, u32)]], data: &[u32]| {
        let (kind, reason) = fault(&guest::returns(&parts.concat(), &words(data)));
        assert_eq!(kind, Fault::Output, "{reason}");
        reason
    };
    // The data of each: causes 0 and 1, then what is wrong.
    let offsets = list(values + at::OFFSETS, 2, 3);
    let four = list(values + at::BYTES, 0, 4);
    let replace: &[(u32, u32)] = &[(at::VALUES, 1)];
    assert_eq!(
        lie(&[&causes, replace, &offsets, &four], &[0, 1, 0, 3, 2]),
        "the function returned values.offsets[2] = 2, less than 3 before it"
    );
    assert_eq!(
        lie(&[&causes, replace, &offsets, &four], &[0, 1, 0, 3, 5]),
        "the function returned values.offsets that end at 5, but there are 4"
    );
    assert_eq!(
        lie(&[&causes, replace, &list(values, 2, 2), &four], &[0, 1, 0, 3]),
        "the function returned 1 values for 2 published events"
    );
    let short = [(values + at::VALIDITY, DATA), (values + at::VALIDITY + 4, 1)];
    let ten = [list(at::CAUSES, 0, 10), list(values, 0, 11)].concat();
    assert_eq!(lie(&[&ten, replace, &short], &[0; 11]), "the function returned values.validity of 1 bytes for 10 rows");
    let names: &[(u32, u32)] = &[(at::HEADERS, 1)];
    let one_each = [list(headers + at::NAMES, 2, 2), list(headers + at::HEADER_VALUES, 2, 2)].concat();
    assert_eq!(
        lie(&[&causes, names, &one_each, &list(headers, 4, 3)], &[0, 1, 0, 0, 0, 2, 1]),
        "the function returned headers.rows[2] = 1, less than 2 before it"
    );
    let null_name = [(headers + at::NAMES + at::VALIDITY, DATA), (headers + at::NAMES + at::VALIDITY + 4, 1)];
    assert_eq!(
        lie(&[&causes, names, &one_each, &null_name, &list(headers, 4, 3)], &[0, 1, 0, 0, 0, 1, 1]),
        "the function returned a header name that is null"
    );
}

#[test]
fn lies_about_rows_are_output_faults() {
    let lie = |parts: &[(u32, u32)], data: &[u32]| {
        let (kind, reason) = fault(&guest::returns(parts, &words(data)));
        assert_eq!(kind, Fault::Output, "{reason}");
        reason
    };
    let causes = |n| [(at::CAUSES, DATA), (at::CAUSES + 4, n)];
    assert_eq!(lie(&causes(1), &[2]), "the function returned causes[0] = 2, but the batch has 2 rows");
    let outputs = [causes(1), [(at::OUTPUTS, DATA + 4), (at::OUTPUTS + 4, 1)]].concat();
    assert_eq!(lie(&outputs, &[0, 2]), "the function returned outputs[0] = 2, but the pipeline has 2 outputs");
    let failures = [causes(1), [(at::FAILURES, DATA + 4), (at::FAILURES + 4, 1)]].concat();
    assert_eq!(lie(&failures, &[1, 1, 0, 0, 0]), "the function returned row 1 both in causes and in failures");
    // A discriminant that the contract does not have.
    assert!(lie(&[(at::KEYS, 7)], &[]).contains("what is no outcome"));
}

#[test]
fn what_may_fail_is_told_apart() {
    let failure = [(at::FAILURES, DATA), (at::FAILURES + 4, 2)];
    // Row 1 is rejected with the reason "no", row 0 is to be retried without one.
    let mut data = words(&[1, 1, DATA + 32, 2, 0, 0, 0, 0]);
    data.extend_from_slice(b"no");
    let outcome = call(&guest::returns(&failure, &data), &two()).unwrap();
    let expected = [(1, FailureKind::Reject, "no"), (0, FailureKind::Retry, "")];
    let expected = expected.map(|(row, kind, reason)| Failure { row, kind, reason: reason.to_owned() });
    assert_eq!(outcome.failures, expected);

    let batch_error = |kind| call(&guest::returns(&[(0, 1), (4, kind), (8, DATA), (12, 4)], b"busy"), &two());
    assert!(matches!(batch_error(0), Err(CallError::Retry(reason)) if reason == "busy"));
    assert!(matches!(batch_error(1), Err(CallError::Reject(reason)) if reason == "busy"));
}

#[test]
fn exit_is_a_trap() {
    let imports = r#"(import "wasi:cli/exit@0.2.0" "exit" (func $exit (param i32)))"#;
    for status in [0, 1] {
        let body = format!("(call $exit (i32.const {status})) (i32.const {RET})");
        let (kind, reason) = fault(&guest::function_with(imports, "", &body));
        assert_eq!(kind, Fault::Trap);
        assert!(reason.starts_with(&format!("the function called exit({status})")), "{reason}");
    }
}

#[test]
fn nothing_of_a_call_is_left_for_the_next() {
    let body = format!(
        "(if (i32.load (i32.const 512)) (then unreachable)) (i32.store (i32.const 512) (i32.const 1)) (i32.const {RET})"
    );
    let engine = engine();
    let function = try_load(&engine, &guest::function(&body), LIMITS).unwrap();
    block_on(&engine, async {
        for _ in 0..100 {
            function.call(&two()).await.unwrap();
        }
    });
}

#[test]
fn more_calls_than_sandboxes_wait_for_their_turn() {
    let engine = engine();
    let function = try_load(&engine, &guest::identity(), LIMITS).unwrap();
    let batch = two();
    block_on(&engine, async {
        let calls = (0..50).map(|_| function.call(&batch));
        for outcome in futures_util::future::join_all(calls).await {
            assert_eq!(outcome.unwrap().len(), 2);
        }
    });
}

#[test]
fn a_call_that_is_dropped_frees_its_sandbox() {
    let engine = engine();
    let endless = guest::function("(loop $again (br $again)) (i32.const 0)");
    let endless = try_load(&engine, &endless, LIMITS).unwrap();
    block_on(&engine, async {
        for _ in 0..5 {
            let batch = two();
            let dropped = tokio::time::timeout(Duration::from_millis(1), endless.call(&batch)).await;
            assert!(dropped.is_err());
        }
    });
}

#[test]
fn log_lines_reach_the_log_and_cannot_forge_others() {
    let items = r#"(data (i32.const 4096) "paid\0a2026 ERROR x") (data (i32.const 4200) "order7")
        (data (i32.const 4300) "\68\10\00\00\05\00\00\00\6d\10\00\00\01\00\00\00")"#;
    let body = format!(
        "(call $log (i32.const 3) (i32.const 4096) (i32.const 17) (i32.const 4300) (i32.const 1)) (i32.const {RET})"
    );
    let component = guest::function_with(LOG, items, &body);
    let (_, log) = logged(|| {
        let span = tracing::info_span!(target: "fluxmill", "pipeline", name = "payment");
        span.in_scope(|| call(&component, &two())).unwrap();
    });
    assert_eq!(log.lines().count(), 1, "{log}");
    for part in ["WARN", "pipeline{name=\"payment\"}", "fluxmill::function", "paid\\n2026 ERROR x", "order=7"] {
        assert!(log.contains(part), "{part} in {log}");
    }
}

#[test]
fn a_log_flood_is_cut_off_and_said_once() {
    for (count, length) in [(1_000_000, 0), (100, 60_000)] {
        let body = format!(
            "(loop $more
               (call $log (i32.const 2) (i32.const 4096) (i32.const {length}) (i32.const 0) (i32.const 0))
               (local.set $i (i32.add (local.get $i) (i32.const 1)))
               (br_if $more (i32.lt_u (local.get $i) (i32.const {count}))))
             (i32.const {RET})"
        );
        let component = guest::function_with(LOG, "", &body);
        let (result, log) = logged(|| call(&component, &two()));
        result.unwrap();
        assert_eq!(log.matches("the rest is dropped").count(), 1);
        // Zero bytes are printed as six characters each; a line costs about a hundred beside its text.
        assert!(log.len() < 64 * 1024 * 10, "{}", log.len());
    }
}

#[test]
fn standard_error_goes_to_the_log_and_into_the_reason() {
    let imports = r#"(import "wasi:cli/stderr@0.2.0" "get-stderr" (func $stderr (result i32)))
        (import "wasi:io/streams@0.2.0" "[method]output-stream.blocking-write-and-flush"
          (func $print (param i32 i32 i32 i32)))"#;
    let items = r#"(data (i32.const 4096) "panicked at lib.rs:7:\0ano amount")"#;
    let body = "(call $print (call $stderr) (i32.const 4096) (i32.const 31) (i32.const 2048)) unreachable";
    let component = guest::function_with(imports, items, body);
    let ((kind, reason), log) = logged(|| fault(&component));
    assert_eq!(kind, Fault::Trap);
    assert!(reason.contains("unreachable") && reason.contains("panicked at lib.rs:7: no amount"), "{reason}");
    assert_eq!(log.lines().count(), 2, "{log}");
    assert!(log.lines().all(|line| line.contains("WARN") && line.contains("fluxmill::function")), "{log}");
}
