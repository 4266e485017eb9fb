#include "model/tokenizer_bpe.h"

#include <algorithm>

namespace perigee::model {

void BpeModel::Encode(absl::string_view word, std::vector<int32_t>& ids) const {
  if (word.empty()) return;
  if (word.size() == 1) {
    ids.push_back(byte_ids_[static_cast<uint8_t>(word[0])]);
    return;
  }
  if (!whole_words_.empty()) {
    if (const auto it = whole_words_.find(word); it != whole_words_.end()) {
      ids.push_back(it->second);
      return;
    }
  }
  // A doubly linked list in an array; a node joined into its left neighbour has id -1.
  struct Node {
    int32_t id, previous, next;
  };
  struct Candidate {
    int32_t rank, left, left_id, right_id, joined;
    // Heap order: the lowest rank on top, the leftmost among equals.
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : left > other.left; }
  };
  // Reused from word to word: most words are short, and allocating for each would be the larger part of the work.
  thread_local std::vector<Node> nodes;
  thread_local std::vector<Candidate> heap;
  const auto n = static_cast<int32_t>(word.size());
  nodes.resize(word.size());
  heap.clear();
  for (int32_t i = 0; i < n; ++i) {
    nodes[static_cast<size_t>(i)] = {byte_ids_[static_cast<uint8_t>(word[static_cast<size_t>(i)])], i - 1,
                                     i + 1 < n ? i + 1 : -1};
  }
  const auto offer = [&](int32_t left) {
    const Node& node = nodes[static_cast<size_t>(left)];
    if (node.next < 0) return;
    const int32_t right_id = nodes[static_cast<size_t>(node.next)].id;
    const auto it = merges_.find(Key(node.id, right_id));
    if (it == merges_.end()) return;
    heap.push_back({it->second.rank, left, node.id, right_id, it->second.joined});
    std::push_heap(heap.begin(), heap.end());
  };
  for (int32_t i = 0; i < n; ++i) offer(i);
  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end());
    const Candidate best = heap.back();
    heap.pop_back();
    Node& left = nodes[static_cast<size_t>(best.left)];
    // Stale if either side has been joined since.
    if (left.id != best.left_id || left.next < 0 || nodes[static_cast<size_t>(left.next)].id != best.right_id) continue;
    Node& right = nodes[static_cast<size_t>(left.next)];
    right.id = -1;
    left.id = best.joined;
    left.next = right.next;
    if (left.next >= 0) nodes[static_cast<size_t>(left.next)].previous = best.left;
    if (left.previous >= 0) offer(left.previous);
    offer(best.left);
  }
  for (int32_t i = 0; i >= 0; i = nodes[static_cast<size_t>(i)].next) ids.push_back(nodes[static_cast<size_t>(i)].id);
  // One giant word must not keep its memory for the thread's life.
  if (nodes.capacity() > (size_t{1} << 16)) {
    std::vector<Node>().swap(nodes);
    std::vector<Candidate>().swap(heap);
  }
}

}  // namespace perigee::model
