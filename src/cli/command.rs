//! The command line in a form that others can reproduce.

use quantier_report::numbers::shell;
use std::ffi::OsString;
use std::sync::OnceLock;

/// The arguments including those of the configuration file.
static ALL: OnceLock<Vec<OsString>> = OnceLock::new();

/// Replaces the process's arguments.
pub fn set(all: Vec<OsString>) {
    let _ = ALL.set(all);
}

/// Options of a plan, which its arguments lack: name, and true with a value.
const OF_PLANS: [(&str, bool); 5] = [
    ("--plan-only", false),
    ("--shard-minutes", true),
    ("--shards", true),
    ("--config", true),
    ("--no-config", false),
];

/// The arguments for a plan: without the program and the options of plans, with those of the
/// configuration file in place of the file.
///
/// # Errors
/// An argument that is not UTF-8.
pub fn planned() -> anyhow::Result<Vec<String>> {
    let all = ALL.get().cloned();
    let all = all.unwrap_or_else(|| std::env::args_os().collect());
    let text = |argument: OsString| {
        let text = argument.into_string();
        text.map_err(|it| anyhow::anyhow!("{}: a plan needs UTF-8", it.to_string_lossy()))
    };
    let all = all.into_iter().skip(1).map(text);
    Ok(without_plan(all.collect::<anyhow::Result<Vec<_>>>()?))
}

fn without_plan(all: Vec<String>) -> Vec<String> {
    let mut planned = Vec::new();
    let mut is_value = false;
    for argument in all {
        let name = argument.split('=').next().unwrap_or_default();
        let option = OF_PLANS.iter().find(|(option, _)| *option == name);
        match option {
            _ if is_value => is_value = false,
            Some((_, has_value)) => is_value = *has_value && !argument.contains('='),
            None => planned.push(argument),
        }
    }
    planned.push("--no-config".into());
    planned
}

/// The arguments as one line, including those of the configuration file. Paths are cut to their
/// last component: directories on this machine are private and useless to others.
pub fn shown() -> String {
    let all = ALL
        .get()
        .cloned()
        .unwrap_or_else(|| std::env::args_os().collect());
    line(
        all.iter()
            .skip(1)
            .map(|argument| argument.to_string_lossy().into_owned()),
    )
}

fn line(arguments: impl Iterator<Item = String>) -> String {
    let mut line = String::from("quantier");
    let (mut is_name, mut is_file, mut is_host) = (false, false, false);
    for argument in arguments {
        // The configuration file's flags are written out instead.
        let skipped =
            is_file || argument == "--no-config" || argument.split('=').next() == Some("--config");
        is_file = argument == "--config";
        if skipped {
            continue;
        }
        line.push(' ');
        line += &shell(&match (is_name, is_host) {
            (true, _) => argument.clone(),
            (_, true) => SERVERS.into(),
            _ => without_path(&argument),
        });
        is_name = NAMES.contains(&&*argument);
        is_host = argument == RPC;
    }
    line
}

/// Options with names on the Hub, which look like paths.
const NAMES: [&str; 2] = ["--base-model", "--repo"];

/// The option with the addresses of servers, and the word in their place.
const RPC: &str = "--rpc";
const SERVERS: &str = "SERVERS";
/// The outside engine, before its directory.
const LLAMA_CPP: &str = "llama.cpp=";

fn without_path(argument: &str) -> String {
    if let Some((option, _)) = argument.split_once(LLAMA_CPP) {
        return format!("{option}{LLAMA_CPP}DIR");
    }
    if argument.split('=').next() == Some(RPC) && argument.contains('=') {
        return format!("{RPC}={SERVERS}");
    }
    let (option, value) = match argument.split_once('=') {
        Some((option, value)) if option.starts_with("--") => (&argument[..option.len() + 1], value),
        // A short option with its value attached.
        _ if argument.starts_with('-') && !argument.starts_with("--") => argument.split_at(
            argument
                .char_indices()
                .nth(2)
                .map_or(argument.len(), |(at, _)| at),
        ),
        _ => ("", argument),
    };
    let is_address = NAMES.contains(&option.trim_end_matches('='))
        || value.starts_with("hf://")
        || value.starts_with("https://");
    match value
        .trim_end_matches(['/', std::path::MAIN_SEPARATOR])
        .rsplit_once(['/', std::path::MAIN_SEPARATOR])
    {
        Some((_, last)) if !is_address => format!("{option}{last}"),
        _ => argument.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_have_no_options_of_plans() {
        let typed = "make m --plan-only --shards 4 --bpw 4 --shard-minutes=2 --config a -o out";
        let typed = typed.split(' ').map(str::to_owned).collect();
        assert_eq!(
            super::without_plan(typed),
            ["make", "m", "--bpw", "4", "-o", "out", "--no-config"]
        );
    }

    #[test]
    fn paths_lose_their_directories() {
        let typed = [
            "make",
            "/home/me/Model/",
            "-f/texts/a b.txt",
            "--eval=../c.txt",
            "--bpw",
            "4.25",
            "-o",
            "out/x",
            "hf://a/b",
            "--repo",
            "a/b",
            "--base-model=c/d",
            "--config",
            "/c.toml",
            "--config=d",
            "--no-config",
            "--seed=2",
            "--engine",
            "llama.cpp=/opt/llama.cpp/bin",
            "--rpc",
            "10.0.0.1:50052",
        ];
        let expected = "quantier make Model '-fa b.txt' --eval=c.txt --bpw 4.25 -o x hf://a/b --repo a/b --base-model=c/d \
             --seed=2 --engine llama.cpp=DIR --rpc SERVERS";
        assert_eq!(line(typed.iter().map(|s| s.to_string())), expected);
    }
}
