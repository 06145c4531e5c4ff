//! Functions written as WebAssembly text: the canonical ABI by hand, so that they can lie in every way.

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// The parts of WASI 0.2 that some of the functions here use, with the names and types of the real ones.
const WASI: &[&str] = &[
    "package wasi:io@0.2.0;
     interface error { resource error; }
     interface poll { resource pollable { block: func(); } }
     interface streams {
       use error.{error};
       variant stream-error { last-operation-failed(error), closed }
       resource output-stream { blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>; }
     }",
    "package wasi:clocks@0.2.0;
     interface monotonic-clock {
       use wasi:io/poll@0.2.0.{pollable};
       subscribe-duration: func(when: u64) -> pollable;
     }",
    "package wasi:cli@0.2.0;
     interface exit { exit: func(status: result); }
     interface stderr { use wasi:io/streams@0.2.0.{output-stream}; get-stderr: func() -> output-stream; }",
    "package wasi:sockets@0.2.0;
     interface tcp { resource tcp-socket { is-listening: func() -> bool; } }",
];

/// The world of most functions here.
const WORLD: &str = "package test:guest; world guest {
    include fluxmill:function/function@0.1.0;
    import wasi:cli/exit@0.2.0;
    import wasi:cli/stderr@0.2.0;
    import wasi:clocks/monotonic-clock@0.2.0;
    import wasi:sockets/tcp@0.2.0;
}";

/// Address of the returned `result<outcome, batch-error>`; all zero means: ok, nothing published, all inherited.
pub(crate) const RET: u32 = 1024;
/// Free memory for data of a test.
pub(crate) const DATA: u32 = 4096;

/// Offsets of the fields of an outcome in the returned result. A list is a pointer and a length.
pub(crate) mod at {
    pub(crate) const CAUSES: u32 = 4;
    pub(crate) const OUTPUTS: u32 = 12;
    pub(crate) const KEYS: u32 = 20;
    pub(crate) const VALUES: u32 = 48;
    pub(crate) const HEADERS: u32 = 76;
    pub(crate) const FAILURES: u32 = 136;
    /// From a variant's discriminant to the lists of its column.
    pub(crate) const REPLACE: u32 = 4;
    /// Within a column.
    pub(crate) const OFFSETS: u32 = 0;
    pub(crate) const BYTES: u32 = 8;
    pub(crate) const VALIDITY: u32 = 16;
    /// Within headers.
    pub(crate) const NAMES: u32 = 8;
    pub(crate) const HEADER_VALUES: u32 = 32;
}

/// A core module with a memory, an allocator, `imports`, and `transform` as given. `$in` points to the event-batch.
pub(crate) fn module(imports: &str, items: &str, transform: &str) -> Vec<u8> {
    let text = format!(
        r#"(module {imports}
          (memory (export "memory") 1)
          (global $heap (mut i32) (i32.const 65536))
          (func $alloc (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32)
            (result i32) (local $at i32) (local $missing i32)
            (local.set $at (i32.and (i32.add (global.get $heap) (i32.sub (local.get $align) (i32.const 1)))
                                    (i32.sub (i32.const 0) (local.get $align))))
            (global.set $heap (i32.add (local.get $at) (local.get $size)))
            (local.set $missing (i32.sub (i32.shr_u (i32.add (global.get $heap) (i32.const 65535)) (i32.const 16))
                                         (memory.size)))
            (if (i32.gt_s (local.get $missing) (i32.const 0))
              (then (if (i32.eq (memory.grow (local.get $missing)) (i32.const -1)) (then unreachable))))
            (local.get $at))
          {items}
          (func $transform (export "transform") (param $in i32) (result i32)
            (local $n i32) (local $i i32) (local $p i32)
            (local.set $n (i32.load offset=108 (local.get $in)))
            {transform}))"#
    );
    wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// Wraps a core module into a component that exports the contract.
pub(crate) fn component(mut module: Vec<u8>) -> Vec<u8> {
    let mut resolve = Resolve::default();
    for text in WASI {
        resolve.push_str("wasi.wit", text).unwrap();
    }
    resolve.push_str("function.wit", include_str!("../../wit/function.wit")).unwrap();
    let package = resolve.push_str("world.wit", WORLD).unwrap();
    let world = resolve.select_world(&[package], None).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8, false).unwrap();
    ComponentEncoder::default().validate(true).module(&module).unwrap().encode().unwrap()
}

/// A component whose `transform` is the given text.
pub(crate) fn function(transform: &str) -> Vec<u8> {
    component(module("", "", transform))
}

/// A component whose `transform` uses imports and further items.
pub(crate) fn function_with(imports: &str, items: &str, transform: &str) -> Vec<u8> {
    component(module(imports, items, transform))
}

/// Returns an outcome with these 32-bit words set, each at its offset, and `data` at [`DATA`].
pub(crate) fn returns(words: &[(u32, u32)], data: &[u8]) -> Vec<u8> {
    let stores: String = words
        .iter()
        .map(|(offset, word)| format!("(i32.store (i32.const {}) (i32.const {}))", RET + offset, *word as i32))
        .collect();
    let bytes: String = data.iter().map(|byte| format!("\\{byte:02x}")).collect();
    let items = format!("(data (i32.const {DATA}) \"{bytes}\")");
    function_with("", &items, &format!("{stores} (i32.const {RET})"))
}

/// Little-endian bytes of words, for [`returns`].
pub(crate) fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Publishes a copy of every event: all columns cross twice.
pub(crate) fn identity() -> Vec<u8> {
    function(&format!("{CAUSES_ALL} {COPY_COLUMNS} (i32.const {RET})"))
}

/// Publishes, as the value of each event, the eight bytes of its timestamp.
pub(crate) fn timestamps() -> Vec<u8> {
    let offsets = "
        (local.set $p (call $alloc (i32.const 0) (i32.const 0) (i32.const 4)
                      (i32.mul (i32.add (local.get $n) (i32.const 1)) (i32.const 4))))
        (i32.store (i32.const 1076) (local.get $p))
        (i32.store (i32.const 1080) (i32.add (local.get $n) (i32.const 1)))
        (i32.store (i32.const 1084) (i32.load offset=104 (local.get $in)))
        (i32.store (i32.const 1088) (i32.mul (local.get $n) (i32.const 8)))
        (i32.store (i32.const 1072) (i32.const 1))
        (local.set $i (i32.const 0))
        (loop $next
          (i32.store (i32.add (local.get $p) (i32.mul (local.get $i) (i32.const 4)))
                     (i32.mul (local.get $i) (i32.const 8)))
          (local.set $i (i32.add (local.get $i) (i32.const 1)))
          (br_if $next (i32.le_u (local.get $i) (local.get $n))))";
    function(&format!("{CAUSES_ALL} {offsets} (i32.const {RET})"))
}

/// Each input row causes one published event.
const CAUSES_ALL: &str = "
    (local.set $p (call $alloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.mul (local.get $n) (i32.const 4))))
    (i32.store (i32.const 1028) (local.get $p))
    (i32.store (i32.const 1032) (local.get $n))
    (block $done (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $n)))
      (i32.store (i32.add (local.get $p) (i32.mul (local.get $i) (i32.const 4))) (local.get $i))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))";

/// Keys, values and headers are returned from where they came in.
const COPY_COLUMNS: &str = "
    (i32.store (i32.const 1044) (i32.const 1))
    (memory.copy (i32.const 1048) (local.get $in) (i32.const 24))
    (i32.store (i32.const 1072) (i32.const 1))
    (memory.copy (i32.const 1076) (i32.add (local.get $in) (i32.const 24)) (i32.const 24))
    (i32.store (i32.const 1100) (i32.const 1))
    (memory.copy (i32.const 1104) (i32.add (local.get $in) (i32.const 48)) (i32.const 56))";
