// Page-aligned memory of its own, as direct I/O wants it. Not zeroed.
#ifndef PERIGEE_KVSTORE_SSD_ALIGNED_BUFFER_H_
#define PERIGEE_KVSTORE_SSD_ALIGNED_BUFFER_H_

#include <cstddef>
#include <cstdlib>
#include <memory>
#include <new>
#include <span>

#include "kvstore/plane_id.h"

namespace perigee::kvstore {

class AlignedBuffer {
 public:
  explicit AlignedBuffer(size_t bytes) : bytes_(RoundUpToPage(bytes)) {
    if (bytes_ == 0) return;
    memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kPageBytes, bytes_)));
    if (memory_ == nullptr) throw std::bad_alloc();
  }
  std::span<std::byte> span() const { return {memory_.get(), bytes_}; }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  size_t bytes_;
  std::unique_ptr<std::byte[], Free> memory_;
};

}  // namespace perigee::kvstore

#endif  // PERIGEE_KVSTORE_SSD_ALIGNED_BUFFER_H_
