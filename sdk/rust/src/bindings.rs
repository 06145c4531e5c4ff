//! What wit-bindgen makes of `wit/function.wit`. Everything else in the crate is written against these types.
#![allow(missing_docs, unreachable_pub, reason = "generated code; the WIT file documents its types")]
#![allow(clippy::all, clippy::allow_attributes_without_reason, reason = "generated code")]

wit_bindgen::generate!({
    world: "function",
    path: "wit",
    pub_export_macro: true,
    default_bindings_module: "fluxmill_function::bindings",
});
