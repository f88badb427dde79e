/* Messages of the plugins: TensorRT's methods only say yes or no. */
#ifndef CRISPSEG_TENSORRT_REPORT_H
#define CRISPSEG_TENSORRT_REPORT_H
#include <string>

namespace crispseg {
namespace plugin {

/* Where messages go; NULL = stderr. The V3 and 8.6 shells pass them to TensorRT's logger. */
void set_sink(void (*sink)(char const *message));
/* Hands a message to the sink and keeps it for last_report (thread-local). Returns false. */
bool report(std::string const &message) noexcept;
char const *last_report() noexcept;

}  // namespace plugin
}  // namespace crispseg
#endif
