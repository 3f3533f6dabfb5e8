// Tokens of conversations by llama.cpp's own rendering of chat templates, for scripts/parity-chat.py.
//
//   chat-reference MODEL TEMPLATE CONVERSATIONS
//
// One line per conversation: the tokens, or "error" and the reason. Dates are those of quantier.
#include "chat.h"
#include "common.h"
#include "json.h"
#include "llama.h"

#include <chrono>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <sstream>

// 26 July 2024, 12:00 UTC.
static const std::time_t TODAY = 1721995200;

// In place of the C library's: templates read the clock by themselves, and so does what they are rendered with.
extern "C" std::time_t time(std::time_t * result) noexcept {
    if (result != nullptr) {
        *result = TODAY;
    }
    return TODAY;
}

extern "C" int clock_gettime(clockid_t, struct timespec * result) noexcept {
    *result = { TODAY, 0 };
    return 0;
}

static std::string contents(const char * path) {
    std::ifstream file(path);
    std::stringstream all;
    all << file.rdbuf();
    return all.str();
}

int main(int argc, char ** argv) {
    if (argc != 4) {
        fprintf(stderr, "usage: chat-reference MODEL TEMPLATE CONVERSATIONS\n");
        return 2;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();
    auto settings = llama_model_default_params();
    settings.vocab_only = true;
    llama_model * model = llama_model_load_from_file(argv[1], settings);
    if (model == nullptr) {
        fprintf(stderr, "chat-reference: %s cannot be loaded\n", argv[1]);
        return 1;
    }
    auto templates = common_chat_templates_init(model, contents(argv[2]));
    std::ifstream conversations(argv[3]);
    for (std::string line; std::getline(conversations, line);) {
        try {
            auto conversation = common_json::parse(line);
            common_chat_templates_inputs inputs;
            inputs.messages = common_chat_msgs_parse_oaicompat(conversation.at("messages"));
            if (conversation.contains("tools")) {
                inputs.tools = common_chat_tools_parse_oaicompat(conversation.at("tools"));
            }
            inputs.add_generation_prompt = false;
            inputs.now = std::chrono::system_clock::from_time_t(TODAY);
            auto prompt = common_chat_templates_apply(templates.get(), inputs).prompt;
            for (auto token : common_tokenize(llama_model_get_vocab(model), prompt, true, true)) {
                printf("%d ", token);
            }
            printf("\n");
        } catch (const std::exception & error) {
            std::string what = error.what();
            printf("error %s\n", what.substr(0, what.find('\n')).c_str());
        }
    }
    llama_model_free(model);
}
