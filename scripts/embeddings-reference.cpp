// Embeddings of texts by llama.cpp, each text run by itself, and sums of squares of the inputs of all linears in the layers.
//
//   embeddings-reference MODEL TEXTS [POOLING] > NUMBERS
//
// TEXTS is a file with the token ids of a text on each line. POOLING is a number of llama.cpp's enum in place of the file's. One
// line for each embedding (of a text, or of each token without pooling), then an empty line, then the sums as print_sums() says. Used
// by scripts/parity-embeddings.py.
#include "llama.h"

#include "sums.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

static void fail(const char * what) {
    fprintf(stderr, "embeddings-reference: %s\n", what);
    exit(1);
}

int main(int argc, char ** argv) {
    if (argc < 3) {
        fail("MODEL TEXTS [POOLING]");
    }
    std::vector<std::vector<llama_token>> texts;
    size_t longest = 0;
    std::ifstream file(argv[2]);
    for (std::string line; std::getline(file, line);) {
        std::istringstream ids(line);
        std::vector<llama_token> text;
        for (llama_token token; ids >> token;) {
            text.push_back(token);
        }
        longest = std::max(longest, text.size());
        texts.push_back(text);
    }
    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    }, nullptr);
    llama_backend_init();
    llama_model_params of_model = llama_model_default_params();
    // Weights as they are in the file, which the callback can read.
    of_model.use_extra_bufts = false;
    llama_model * model = llama_model_load_from_file(argv[1], of_model);
    if (!model) {
        fail("the model cannot be loaded");
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = params.n_batch = params.n_ubatch = longest;
    params.n_threads = params.n_threads_batch = 1;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.embeddings = true;
    params.cb_eval = collect;
    if (argc > 3) {
        params.pooling_type = (enum llama_pooling_type) atoi(argv[3]);
    }
    llama_context * context = llama_init_from_model(model, params);
    if (!context) {
        fail("no context");
    }
    const bool is_pooled = llama_pooling_type(context) != LLAMA_POOLING_TYPE_NONE;
    const int width = llama_model_n_embd_out(model);
    for (const auto & text : texts) {
        if (llama_memory_t memory = llama_get_memory(context)) {
            llama_memory_clear(memory, true);
        }
        llama_batch batch = llama_batch_init(text.size(), 0, 1);
        for (size_t k = 0; k < text.size(); ++k) {
            batch.token[k] = text[k];
            batch.pos[k] = k;
            batch.n_seq_id[k] = 1;
            batch.seq_id[k][0] = 0;
            batch.logits[k] = 1;
        }
        batch.n_tokens = text.size();
        if (llama_decode(context, batch) != 0) {
            fail("the model does not run");
        }
        for (size_t k = 0; k < (is_pooled ? 1 : text.size()); ++k) {
            const float * x = is_pooled ? llama_get_embeddings_seq(context, 0) : llama_get_embeddings_ith(context, k);
            if (!x) {
                fail("no embedding");
            }
            for (int i = 0; i < width; ++i) {
                printf("%.9g ", x[i]);
            }
            printf("\n");
        }
        llama_batch_free(batch);
    }
    printf("\n");
    print_sums();
    llama_free(context);
    llama_model_free(model);
}
