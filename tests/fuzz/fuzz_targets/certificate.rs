#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flatnet_tests::parsers::certificate(bytes));
