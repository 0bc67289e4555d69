#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| idemptx_gateway::fuzzed::messages(data));
