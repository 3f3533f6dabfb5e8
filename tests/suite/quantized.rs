//! Readers of quantized checkpoints: sound ones are read in any part, torn ones are refused.

use quantier::convert::{Checkpoint, Error};

#[path = "../../benches/stored/mod.rs"]
mod stored;

/// Positive and finite as scales of any type, and no zero of codes.
fn sound(i: usize) -> u8 {
    0x20 + (i * 37 % 31) as u8
}

#[test]
fn sound_checkpoints_are_read_in_any_part() {
    for kind in stored::KINDS {
        let dir = stored::Model::new(*kind, 64, 96).write(sound);
        let checkpoint = Checkpoint::open(dir.path()).unwrap();
        assert!(
            checkpoint.problems.is_empty(),
            "{kind:?}: {:?}",
            checkpoint.problems
        );
        let [source] = &*checkpoint.tensors else {
            panic!("{kind:?}: {:?}", checkpoint.tensors);
        };
        assert_eq!(
            (&*source.name, &*source.shape),
            ("a.weight", &[64, 96][..]),
            "{kind:?}"
        );
        let mut whole = vec![0.0; 64 * 96];
        checkpoint.numbers(source, 0..64 * 96, &mut whole).unwrap();
        assert!(whole.iter().all(|weight| weight.is_finite()), "{kind:?}");
        assert!(whole.iter().any(|weight| *weight != whole[0]), "{kind:?}");
        for start in (0..64 * 96u64).step_by(113) {
            let end = (start * 7 + 5) % (64 * 96);
            let range = start.min(end)..start.max(end);
            let mut part = vec![0.0; (range.end - range.start) as usize];
            checkpoint
                .numbers(source, range.clone(), &mut part)
                .unwrap();
            assert_eq!(
                part,
                whole[range.start as usize..range.end as usize],
                "{kind:?} {range:?}"
            );
        }
    }
}

#[test]
fn torn_checkpoints_are_refused_and_never_read_beyond_their_tensors() {
    let mut state = 1u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (state >> 33) % below
    };
    let (mut refused, mut read) = (0, 0);
    for _ in 0..1500 {
        let kind = stored::KINDS[random(stored::KINDS.len() as u64) as usize];
        let mut model = stored::Model::new(kind, 4 * (1 + random(20)), 16 * (1 + random(8)));
        for _ in 0..=random(2) {
            let at = random(model.tensors.len() as u64) as usize;
            let tensor = &mut model.tensors[at];
            match random(5) {
                0 => tensor.dtype = stored::DTYPES[random(stored::DTYPES.len() as u64) as usize],
                1 => tensor.shape.push(random(4)),
                2 => drop(tensor.shape.pop()),
                3 => drop(model.tensors.remove(at)),
                _ => {
                    let size = random(130);
                    if let Some(last) = tensor.shape.last_mut() {
                        *last = size;
                    }
                }
            }
            if model.tensors.is_empty() {
                break;
            }
        }
        let salt = random(251) as usize;
        let dir = model.write(|i| (i * 31 + salt) as u8);
        let checkpoint = match Checkpoint::open(dir.path()) {
            Ok(checkpoint) if checkpoint.problems.is_empty() => checkpoint,
            Ok(checkpoint) => {
                refused += 1;
                assert!(
                    checkpoint
                        .problems
                        .iter()
                        .all(|problem| !problem.reason.is_empty())
                );
                continue;
            }
            Err(_) => continue,
        };
        for source in &checkpoint.tensors {
            let count: u64 = source.shape.iter().product();
            let mut weights = vec![0.0; count as usize];
            match checkpoint.numbers(source, 0..count, &mut weights) {
                Ok(()) => read += 1,
                Err(error) => assert!(matches!(error, Error::BadScale { .. }), "{error}"),
            }
        }
    }
    assert!(refused > 300 && read > 300, "{refused} {read}");
}
