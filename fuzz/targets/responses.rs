//! Responses of hostile brokers: the input is decoded as every response that is known, in every version. What is
//! looked for is a panic, and memory out of proportion to the input.
#![no_main]

#[path = "../../src/broker/kafka/wire"]
mod wire {
    #[allow(dead_code, unused_imports, reason = "the target uses a part of it")]
    pub(crate) mod response;
}

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| wire::response::decode_any(data));
