//! What a runtime writes to the plugin's standard input, as far as it is read without touching the kernel.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netd_cni::config::{Config, Envelope, version_of};
use netd_cni::result::AddResult;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    // A path in the configuration would be read: only `ipam.resolvConf` is, while the configuration is.
    if bytes.windows(10).any(|window| window.eq_ignore_ascii_case(b"resolvConf")) {
        return;
    }
    let version = version_of(bytes);
    let envelope = match Envelope::parse(bytes) {
        Ok(envelope) => envelope,
        Err(error) => return is_error(&error.to_json(version)),
    };
    let config = match Config::read(envelope) {
        Ok(config) => config,
        Err(error) => return is_error(&error.to_json(version)),
    };
    assert!(config.bridge.len() <= 15, "a name for a link: {:?}", config.bridge);
    assert!(config.directory.is_absolute(), "{:?}", config.directory);
    let result = AddResult {
        interfaces: vec![],
        place: 0,
        addresses: vec![],
        routes: vec![],
        dns: config.dns.clone(),
    };
    match result.to_json(config.version, config.previous.as_ref()) {
        Ok(text) => {
            let value: Value = serde_json::from_str(&text).expect("a result is JSON");
            assert_eq!(value["cniVersion"].as_str(), Some(config.version.name()));
        }
        Err(error) => is_error(&error.to_json(version)),
    }
});

/// The runtime's library shows what is no error in the spec's form as one long line of JSON.
fn is_error(text: &str) {
    let value: Value = serde_json::from_str(text).expect("an error is JSON");
    assert!(value["code"].as_u64().is_some_and(|code| code > 0), "{text}");
    assert!(value["msg"].as_str().is_some_and(|msg| !msg.is_empty()), "{text}");
}
