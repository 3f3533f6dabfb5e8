//! Popular models unsupported by the reference, for errors with their names.

/// An unsupported model.
struct Refused {
    /// `model_type` in config.json.
    model_type: &'static str,
    /// Common name.
    title: &'static str,
    why: Why,
}

/// Reason why there is no GGUF of a model.
#[derive(Clone, Copy)]
enum Why {
    /// llama.cpp does not support it.
    Unknown,
    /// A later llama.cpp supports it.
    Later,
    /// The reference's file lacks a key that llama.cpp requires.
    Unloadable,
    /// The reference writes its tokens as those of BERT.
    WordPieces,
}

const TABLE: &[Refused] = &[
    unknown("inkling_mm_model", "Inkling"),
    unknown("deepseek_v41", "DeepSeek V4.1"),
    unknown("diffusion_gemma", "DiffusionGemma"),
    unknown("apertus1p5", "Apertus 1.5"),
    unknown("minicpm_sala", "MiniCPM-SALA"),
    unknown("opt", "OPT"),
    unknown("mpnet", "MPNet"),
    unknown("albert", "ALBERT"),
    unknown("electra", "ELECTRA"),
    unknown("deberta-v2", "DeBERTa"),
    Refused {
        why: Why::WordPieces,
        ..unknown("camembert", "CamemBERT")
    },
    unknown("gpt_neo", "GPT-Neo"),
    unknown("zamba2", "Zamba 2"),
    unknown("llada2_moe", "LLaDA 2"),
    unknown("axk2", "A.X K2"),
    later("k2_horizon", "K2 Horizon"),
    later("kolibri1", "Kolibri 1"),
    unknown("xing4_0", "Xing 4.0"),
    Refused {
        why: Why::Unloadable,
        ..unknown("qwen", "Qwen 1")
    },
    unknown("olmo_hybrid", "OLMo Hybrid"),
    unknown("gigachat3_5", "GigaChat 3.5"),
];

const fn unknown(model_type: &'static str, title: &'static str) -> Refused {
    Refused {
        model_type,
        title,
        why: Why::Unknown,
    }
}

const fn later(model_type: &'static str, title: &'static str) -> Refused {
    Refused {
        why: Why::Later,
        ..unknown(model_type, title)
    }
}

/// The reason why a model of this type cannot be converted, if it is a known one.
pub(super) fn reason(model_type: &str, class: &str) -> Option<String> {
    let refused = TABLE.iter().find(|row| row.model_type == model_type)?;
    let title = refused.title;
    let why = match refused.why {
        Why::Unknown => "llama.cpp cannot run it, so that there is no GGUF to make of it",
        Why::WordPieces => {
            "convert_hf_to_gguf.py takes its SentencePiece tokens for those of BERT, with which llama.cpp splits no text; \
             XLM-RoBERTa and its kin are supported"
        }
        Why::Later => "only a later llama.cpp than the one that files are compared with runs it",
        Why::Unloadable => {
            "convert_hf_to_gguf.py leaves out the epsilon of its norms, so that llama.cpp does not load the file; \
             its successor Qwen1.5 and later ones are supported"
        }
    };
    Some(format!(
        "{title} (model type '{model_type}', class '{class}') is not supported: {why}"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn popular_models_are_refused_by_name() {
        let reason = |model_type| super::reason(model_type, "XForCausalLM");
        assert!(reason("opt").unwrap().starts_with("OPT (model type 'opt'"));
        assert!(reason("kolibri1").unwrap().contains("a later llama.cpp"));
        assert!(reason("qwen").unwrap().contains("epsilon"));
        assert_eq!(reason("llama"), None);
        let mut types: Vec<_> = TABLE.iter().map(|row| row.model_type).collect();
        types.sort_unstable();
        types.dedup();
        assert_eq!(types.len(), TABLE.len());
    }
}
