use api::{DeployRequest, SettingsPatch};
use model::{FunctionName, Plain};

/// What is asked for, a line each. Variables by name only, since their values may be secrets.
pub(crate) fn told(name: &FunctionName, request: &DeployRequest) -> String {
    let DeployRequest { runtime, entrypoint, settings } = request;
    let SettingsPatch {
        reset,
        environment,
        timeout,
        memory,
        cpus,
        network,
        concurrency,
        min,
        max,
        idle,
    } = settings;
    let number = |number: &Option<u32>| number.map(|number| number.to_string());
    let names = |is_set| {
        let wanted = environment.iter().filter(|(_, value)| value.is_some() == is_set);
        let names: Vec<_> = wanted.map(|(name, _)| name.as_str()).collect();
        (!names.is_empty()).then(|| names.join(", "))
    };
    let reset: Vec<_> = reset.iter().map(|name| name.as_str()).collect();
    let facts = [
        ("name", Some(name.to_string())),
        ("runtime", runtime.clone()),
        ("entrypoint", entrypoint.clone()),
        ("reset", (!reset.is_empty()).then(|| reset.join(", "))),
        ("timeout", timeout.clone()),
        ("memory", memory.clone()),
        ("cpus", cpus.clone()),
        ("network", network.clone()),
        ("concurrency", number(concurrency)),
        ("min", number(min)),
        ("max", number(max)),
        ("idle", idle.clone()),
        ("variables", names(true)),
        ("removed", names(false)),
    ];
    let known = facts.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
    known.map(|(key, value)| format!("{key:<13}{}\n", Plain(value))).collect()
}
