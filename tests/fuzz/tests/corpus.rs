//! Every known input, once more.

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "helpers of tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use deadlight_fuzz::TARGETS;

macro_rules! replayed {
    ($($name:ident)*) => {
        $(#[test]
        fn $name() {
            replay(stringify!($name));
        })*

        /// A target whose corpus nobody replays would only look tested.
        #[test]
        fn every_target_has_a_corpus_and_a_program() {
            let replayed = BTreeSet::from([$(stringify!($name).to_owned()),*]);
            assert_eq!(replayed, TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect());
            assert_eq!(replayed, names(directory("corpus")));
            let programs = names(directory("targets")).into_iter();
            assert_eq!(replayed, programs.map(|name| name.trim_end_matches(".rs").to_owned()).collect());
        }
    };
}

replayed! {
    agent_answer agent_config alert allowlist answer certificate docker door enrol_line iptables_save nft order payloads report saved_scan
    scanner_config sinks
}

fn replay(name: &str) {
    let (_, target) = TARGETS.into_iter().find(|(target, _)| *target == name).unwrap();
    let inputs = names(directory("corpus").join(name));
    assert!(!inputs.is_empty(), "the corpus of {name} is empty");
    for input in inputs {
        let path = directory("corpus").join(name).join(&input);
        // Shown only beside a failure: which input it was.
        println!("{}", path.display());
        target(&fs::read(path).unwrap());
    }
}

fn directory(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), name].iter().collect()
}

fn names(directory: PathBuf) -> BTreeSet<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}
