//! The environment of a call: the lines of the input are the variables' values.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netd_cni::call::Call;

const VARIABLES: [&str; 7] = [
    "CNI_COMMAND",
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
    "CNI_NETNS_OVERRIDE",
];

fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let values: Vec<&str> = text.split('\n').collect();
    let variable = |name: &str| {
        let place = VARIABLES.iter().position(|known| *known == name)?;
        values.get(place).map(|value| (*value).to_owned())
    };
    let Ok(Some(call)) = Call::read(variable) else { return };
    assert!(!call.owner.container.contains('/') && !call.owner.interface.contains('/'));
    assert!(call.owner.interface.len() <= 15 && !matches!(call.owner.interface.as_str(), "." | ".."));
});
