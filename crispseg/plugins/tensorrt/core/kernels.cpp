#include "kernels.h"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

#include "device.h"

namespace crispseg {
namespace plugin {
namespace {

constexpr size_t kMostBytes = size_t{256} << 20;

struct Store {
  std::mutex lock;
  std::vector<char> image;
  std::map<void *, std::weak_ptr<csg_context>> contexts;
};

/* Never destroyed: TensorRT may drop its plugins after the static objects of this library. */
Store &store() {
  static Store *const made = new Store();
  return *made;
}

bool read_file(char const *path, std::vector<char> &bytes, std::string &error) {
  std::FILE *file = std::fopen(path, "rb");
  if (!file) {
    error = std::string("kernel image ") + path +
            ": expected a file that can be read, found none; make it with crispseg build";
    return false;
  }
  bytes.clear();
  char buffer[1 << 16];
  size_t got = 0;
  while ((got = std::fread(buffer, 1, sizeof buffer, file)) > 0 && bytes.size() <= kMostBytes) {
    bytes.insert(bytes.end(), buffer, buffer + got);
  }
  bool const failed = std::ferror(file) != 0;
  std::fclose(file);
  if (failed || bytes.empty() || bytes.size() > kMostBytes) {
    error = std::string("kernel image ") + path + ": expected 1 byte to 256 MiB, found " +
            std::to_string(bytes.size()) + (failed ? " and a read error" : "") + "; make it again with crispseg build";
    return false;
  }
  bytes.push_back('\0'); /* PTX is text and ends with NUL */
  return true;
}

}  // namespace

bool set_kernels(void const *image, size_t bytes, std::string &error) {
  if (!image || bytes == 0 || bytes > kMostBytes) {
    error = "kernel image: expected 1 byte to 256 MiB, found " + std::to_string(image ? bytes : 0);
    return false;
  }
  auto const *data = static_cast<char const *>(image);
  std::vector<char> copy(data, data + bytes);
  copy.push_back('\0');
  std::lock_guard<std::mutex> guard(store().lock);
  store().image.swap(copy);
  store().contexts.clear();
  return true;
}

bool set_kernels(char const *path, std::string &error) {
  std::vector<char> bytes;
  if (!path || !*path) {
    error = "kernel image: expected a path, found none";
    return false;
  }
  return read_file(path, bytes, error) && set_kernels(bytes.data(), bytes.size() - 1, error);
}

std::shared_ptr<csg_context> acquire_context(std::string &error) {
  void *const current = current_cuda_context();
  if (!current) {
    error = std::string("no CUDA context on this thread: ") + csg_last_error();
    return nullptr;
  }
  Store &all = store();
  std::lock_guard<std::mutex> guard(all.lock);
  auto const found = all.contexts.find(current);
  if (found != all.contexts.end()) {
    if (auto alive = found->second.lock()) return alive;
  }
  if (all.image.empty()) {
    char const *path = std::getenv("CRISPSEG_KERNELS");
    size_t embedded = 0;
    if (path && *path) {
      if (!read_file(path, all.image, error)) {
        all.image.clear();
        return nullptr;
      }
    } else if (!csg_embedded_image(&embedded)) {
      error =
          "no kernels: this library was built without nvcc; run it through crispseg, which compiles them, or name an "
          "image in $CRISPSEG_KERNELS";
      return nullptr;
    }
  }
  csg_context *const made = csg_create(all.image.empty() ? nullptr : all.image.data(), all.image.size());
  if (!made) {
    error = csg_last_error();
    return nullptr;
  }
  std::shared_ptr<csg_context> shared(made, csg_destroy);
  all.contexts[current] = shared;
  return shared;
}

}  // namespace plugin
}  // namespace crispseg
