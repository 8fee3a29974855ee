#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| hf_cache_sync::fuzz::card(data));
