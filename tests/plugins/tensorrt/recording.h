// Stands in for the csg_* functions: writes down every call with its arguments, touches no memory, answers as told.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

struct Recorded {
  std::string text;  // "csg_logits_at type=0 logits=0x10 C=19 ..."
};
std::vector<Recorded> &recorded();
extern int answer;               // status of the next calls
extern bool have_context;        // a current CUDA context
extern int live_contexts, made_contexts;
extern std::string last_image;   // what csg_create was given
