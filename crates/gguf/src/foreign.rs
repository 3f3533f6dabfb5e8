//! Weight files of unsupported formats: explanation and remedy.

/// A kind of file.
struct Kind {
    is: fn(&str) -> bool,
    /// Explanation and remedy, printed after the file's name.
    what: &'static str,
}

/// In order of precedence, for directories with files of several kinds.
const KINDS: [Kind; 12] = [
    Kind {
        is: |name| name.ends_with(".safetensors"),
        what: "is not found under this name, only model*.safetensors is; name the file itself, or, where there are \
               several, give them such names: model-00001-of-00002.safetensors and so on",
    },
    Kind {
        is: |name| is_ggml(name) && name.ends_with(".bin"),
        what: "is a llama.cpp model from before GGUF, which llama.cpp no longer loads; convert the original checkpoint",
    },
    Kind {
        is: |name| name.ends_with(".bin") && !is_trainers(name),
        what: "is not found under this name, only pytorch_model*.bin is; name the file itself, or, where there are \
               several, give them such names: pytorch_model-00001-of-00002.bin and so on",
    },
    Kind {
        is: |name| name.starts_with("consolidated.") && name.ends_with(".pth"),
        what: "is in Meta's own format; take the same model as transformers has it (its repository often ends in \
               -hf), or convert it with convert_llama_weights_to_hf.py of transformers",
    },
    Kind {
        is: |name| {
            name.ends_with("_model_states.pt")
                || name == "zero_to_fp32.py"
                || name.starts_with("global_step")
        },
        what: "is the state of a training with DeepSpeed; make a checkpoint of it: \
               python zero_to_fp32.py . OUT --safe_serialization",
    },
    Kind {
        is: |name| name.ends_with(".distcp"),
        what: "is a shard of a distributed training checkpoint; make one file of it with \
               torch.distributed.checkpoint.format_utils, or save the model with save_pretrained",
    },
    Kind {
        is: |name| {
            [".pt", ".pth", ".ckpt"]
                .iter()
                .any(|end| name.ends_with(end))
        },
        what: "is a file of PyTorch that transformers does not load; save the model with save_pretrained(OUT)",
    },
    Kind {
        is: |name| name.ends_with(".h5"),
        what: "holds TensorFlow's weights; make safetensors of them: \
               AutoModelForCausalLM.from_pretrained(DIR, from_tf=True).save_pretrained(OUT)",
    },
    Kind {
        is: |name| name.ends_with(".msgpack"),
        what: "holds Flax's weights; make safetensors of them: \
               AutoModelForCausalLM.from_pretrained(DIR, from_flax=True).save_pretrained(OUT)",
    },
    Kind {
        is: |name| name.ends_with(".npz"),
        what: "holds MLX weights; convert the original checkpoint, or save this one as safetensors",
    },
    Kind {
        is: |name| {
            [".onnx", ".tflite", ".ot", ".nemo", ".engine", ".mlpackage/"]
                .iter()
                .any(|end| name.ends_with(end))
        },
        what: "is an export for another program; convert the original checkpoint",
    },
    Kind {
        is: |name| name.starts_with("checkpoint-") && name.ends_with('/'),
        what: "may be a training checkpoint; name that directory",
    },
];

/// Explains a directory without supported weights by the names in it; names of directories end with
/// a slash.
pub fn explain(names: &[String]) -> Option<String> {
    let found = |kind: &Kind| {
        Some((
            names.iter().find(|name| (kind.is)(name))?.clone(),
            kind.what,
        ))
    };
    let (name, what) = KINDS.iter().find_map(found)?;
    Some(format!("{} {what}", super::shown(&name)))
}

/// True for names of files older than GGUF.
fn is_ggml(name: &str) -> bool {
    name.contains("ggml") || name.contains("ggjt") || name.contains("-q4_") || name.contains(".q4_")
}

/// True for training state that is stored beside the weights.
fn is_trainers(name: &str) -> bool {
    [
        "training_args",
        "optimizer",
        "scheduler",
        "random_states",
        "rng_state",
    ]
    .iter()
    .any(|start| name.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn directories_are_explained_by_the_first_kind() {
        let of = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
            explain(&names)
        };
        for (names, part) in [
            (
                &["weights.safetensors"][..],
                "'weights.safetensors' is not found under this name",
            ),
            (&["diffusion_pytorch_model.bin"], "only pytorch_model*.bin"),
            (&["ggml-model-q4_0.bin"], "before GGUF"),
            (&["consolidated.00.pth", "params.json"], "Meta's own format"),
            (&["global_step10/", "zero_to_fp32.py"], "DeepSpeed"),
            (&["__0_0.distcp"], "distributed training"),
            (&["model.ckpt"], "save_pretrained"),
            (
                &["flax_model.msgpack", "tf_model.h5"],
                "'tf_model.h5' holds TensorFlow's",
            ),
            (&["flax_model.msgpack"], "Flax's"),
            (&["weights.npz"], "MLX"),
            (&["model.onnx"], "another program"),
            (
                &["checkpoint-500/", "training_args.bin"],
                "'checkpoint-500/' may be a training checkpoint",
            ),
        ] {
            let what = of(names).unwrap();
            assert!(what.contains(part), "{what} | {part}");
        }
        assert_eq!(
            of(&["config.json", "tokenizer.model", "training_args.bin"]),
            None
        );
    }
}
