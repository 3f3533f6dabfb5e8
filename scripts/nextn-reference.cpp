// Sums of squares of the inputs of all linears in llama.cpp's multi-token prediction block, run over whole chunks as a draft model
// runs over a prompt: position k reads its token and the activations of position k - 1, the first one zeros.
//
//   nextn-reference MODEL TOKENS CONTEXT > SUMS
//
// TOKENS is a file of ids; every CONTEXT of them are a chunk. One line per linear: its name, its number of tokens (one
// per expert of a mixture), a bar, and the sums (one per column of each matrix). Used by scripts/parity-nextn.py.
#include "common.h"
#include "llama.h"
#include "../src/llama-ext.h"

#include "sums.h"

#include <cstdlib>
#include <fstream>
#include <vector>

static void fail(const char * what) {
    fprintf(stderr, "nextn-reference: %s\n", what);
    exit(1);
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fail("MODEL TOKENS CONTEXT");
    }
    const int context = atoi(argv[3]);
    std::vector<llama_token> tokens;
    std::ifstream file(argv[2]);
    for (llama_token token; file >> token;) {
        tokens.push_back(token);
    }
    llama_backend_init();
    llama_model_params of_model = llama_model_default_params();
    // Weights as they are in the file, which the callback can read.
    of_model.use_extra_bufts = false;
    of_model.load_mtp = true;
    llama_model * model = llama_model_load_from_file(argv[1], of_model);
    if (!model || llama_model_n_layer_nextn(model) == 0) {
        fail("the model has no such block");
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = context;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F32;
    llama_context * target = llama_init_from_model(model, params);
    params.ctx_type = LLAMA_CONTEXT_TYPE_MTP;
    params.cb_eval = collect;
    llama_context * draft = llama_init_from_model(model, params);
    if (!target || !draft) {
        fail("no context");
    }
    llama_set_embeddings_nextn(target, true, /* masked */ false);
    llama_set_embeddings_nextn(draft, true, /* masked */ true);
    const int width = llama_model_n_embd_out(model);
    const std::vector<float> zeros(width, 0.0f);
    common_batch of_target(target), of_draft(draft);
    for (size_t first = 0; first + context <= tokens.size(); first += context) {
        llama_memory_clear(llama_get_memory(target), true);
        llama_memory_clear(llama_get_memory(draft), true);
        of_target.clear();
        of_draft.clear();
        for (int k = 0; k < context; ++k) {
            of_target.add(tokens[first + k], k, 0, true);
        }
        if (llama_process(target, LLAMA_PROCESS_TYPE_DECODE, of_target.get()) != 0) {
            fail("the model does not run");
        }
        const float * hidden = llama_get_embeddings_nextn(target);
        for (int k = 0; k < context; ++k) {
            const int index = of_draft.add(tokens[first + k], k, 0, true);
            const float * before = k == 0 ? zeros.data() : hidden + (size_t) (k - 1) * width;
            of_draft.set_embd(index, { before, 1, (size_t) width });
        }
        if (llama_process(draft, LLAMA_PROCESS_TYPE_DECODE, of_draft.get()) != 0) {
            fail("the block does not run");
        }
    }
    print_sums();
    llama_free(draft);
    llama_free(target);
    llama_model_free(model);
}
