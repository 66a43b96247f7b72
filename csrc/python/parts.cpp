// The runtime's parts on their own, for tests, measurements and custom engines.
#include "parts.h"

#include <pybind11/stl.h>

#include "../runtime/runtime.h"
#include "arrays.h"

namespace skv::python {
namespace {

struct PyDraftIndex {
  PyDraftIndex(int max_ngram, int min_ngram) : index(max_ngram, min_ngram) {}
  void extend(Object object) {
    const Tokens more = to_tokens(object, "DraftIndex.extend");
    history.insert(history.end(), more.data(), more.data() + more.size());
    index.extend(history.data(), static_cast<int64_t>(history.size()));
  }
  void truncate(int64_t length) {
    if (length < 0 || length > static_cast<int64_t>(history.size())) {
      throw py::value_error("DraftIndex.truncate: length is outside the history");
    }
    index.truncate(history.data(), length);
    history.resize(length);
  }
  py::array_t<int32_t> propose(int64_t k, bool latest) const {
    const int most = static_cast<int>(std::clamp<int64_t>(k, 0, index.length()));  // it proposes no more
    std::vector<int32_t> drafts(most);
    return copy_of(drafts.data(), index.propose(history.data(), most, latest, drafts.data()));
  }

  py::array_t<int64_t> occurrences(int shortest) const {
    int64_t places[DraftIndex::kVisits];
    const auto length = static_cast<int64_t>(history.size());
    const int32_t* text = history.data();
    return copy_of(places, index.occurrences(text, text + length, length, shortest, places));
  }

  DraftIndex index;
  std::vector<int32_t> history;
};

// A radix tree over a pool of its own, driven by whole prefixes.
struct PyRadixTree {
  PyRadixTree(int32_t num_blocks, int64_t block_size, const std::string& policy)
      : pool(num_blocks), tree(&pool, block_size, make_eviction_policy(policy)) {}

  // Returns how many tokens were new; their blocks come from the pool, after eviction where needed.
  int64_t insert(Object object, const std::string& salt) {
    const Tokens tokens = to_tokens(object, "RadixTree.insert");
    const int64_t size = (tokens.size() + tree.block_size() - 1) / tree.block_size();
    // Counted before anything changes: what is there of the prefix is locked while the rest comes.
    int64_t matched = 0, pinned = 0;
    if (const Root* root = tree.find_root(salt))
      matched = tree.match_length(root, tokens.data(), tokens.size(), &pinned);
    int64_t own_begin = matched / tree.block_size();
    const int64_t needed = matched < tokens.size() ? size - own_begin : 0;
    const int64_t evictable = tree.num_evictable_blocks() - pinned;
    if (needed > pool.num_free() + evictable) throw OutOfBlocks(needed, pool.num_free(), evictable, pinned);
    Root* root = tree.open_root(salt);
    std::vector<int32_t> table;
    Node* held = tree.descend(root, tokens.data(), tokens.size(), &table);
    tree.lock(held);
    tree.evict(needed - pool.num_free());
    table.resize(size);
    int64_t first_changed = own_begin;
    if (!pool.alloc(needed, table.data() + own_begin))
      throw std::logic_error("RadixTree.insert: blocks that were counted as available are not");
    held = tree.insert(held, tokens.data(), tokens.size(), table.data(), &own_begin, &first_changed);
    tree.unlock(held);
    tree.close_root(root);
    return tokens.size() - matched;
  }

  py::tuple match(Object object, const std::string& salt) {
    const Tokens tokens = to_tokens(object, "RadixTree.match");
    Root* root = tree.open_root(salt);
    std::vector<int32_t> table;
    const int64_t length = tree.descend(root, tokens.data(), tokens.size(), &table)->end;
    tree.close_root(root);
    return py::make_tuple(length, copy_of(table.data(), static_cast<int64_t>(table.size())));
  }

  int64_t match_length(Object object, const std::string& salt) const {
    const Tokens tokens = to_tokens(object, "RadixTree.match_length");
    const Root* root = tree.find_root(salt);
    return root ? tree.match_length(root, tokens.data(), tokens.size()) : 0;
  }

  void check() const {
    std::vector<int32_t> refs(pool.num_blocks(), 0);
    tree.check(&refs);
    for (int32_t b = 0; b < pool.num_blocks(); ++b) {
      if (refs[b] != pool.ref_count(b))
        throw std::logic_error("RadixTree: a block's references are miscounted");
    }
  }

  BlockPool pool;
  RadixTree tree;
};

}  // namespace

void define_parts(py::module_& m) {
  py::class_<BlockPool>(m, "BlockPool")
      .def(py::init([](Object num_blocks) {
             return std::make_unique<BlockPool>(to_int<int32_t>(num_blocks, "BlockPool", "num_blocks"));
           }),
           py::arg("num_blocks"))
      .def(
          "alloc",
          [](BlockPool& pool, Object num) -> py::object {
            const auto n = to_int<int64_t>(num, "BlockPool.alloc", "n");
            std::vector<int32_t> blocks(std::max<int64_t>(0, std::min(n, pool.num_free())));
            if (!pool.alloc(n, blocks.data())) return py::none();
            return copy_of(blocks.data(), n);
          },
          py::arg("n"))
      .def(
          "ref", [](BlockPool& p, Object b) { p.ref(to_int<int32_t>(b, "BlockPool.ref", "block")); },
          py::arg("block"))
      .def(
          "unref",
          [](BlockPool& p, Object b) { return p.unref(to_int<int32_t>(b, "BlockPool.unref", "block")); },
          py::arg("block"))
      .def(
          "ref_count",
          [](BlockPool& p, Object b) {
            return p.ref_count(to_int<int32_t>(b, "BlockPool.ref_count", "block"));
          },
          py::arg("block"))
      .def_property_readonly("num_free", &BlockPool::num_free)
      .def_property_readonly("num_blocks", &BlockPool::num_blocks);
  py::class_<PyRadixTree>(m, "RadixTree")
      .def(py::init([](Object num_blocks, Object block_size, const std::string& policy) {
             return std::make_unique<PyRadixTree>(to_int<int32_t>(num_blocks, "RadixTree", "num_blocks"),
                                                  to_int<int64_t>(block_size, "RadixTree", "block_size"),
                                                  policy);
           }),
           py::arg("num_blocks"), py::arg("block_size"), py::arg("policy") = "lru")
      .def(
          "insert",
          [](PyRadixTree& t, Object tokens, Object ns) {
            return t.insert(tokens, salt_of(ns, "RadixTree.insert"));
          },
          py::arg("tokens"), py::arg("namespace") = "")
      .def(
          "match",
          [](PyRadixTree& t, Object tokens, Object ns) {
            return t.match(tokens, salt_of(ns, "RadixTree.match"));
          },
          py::arg("tokens"), py::arg("namespace") = "")
      .def(
          "match_length",
          [](PyRadixTree& t, Object tokens, Object ns) {
            return t.match_length(tokens, salt_of(ns, "RadixTree.match_length"));
          },
          py::arg("tokens"), py::arg("namespace") = "")
      .def(
          "evict",
          [](PyRadixTree& t, Object n) {
            return t.tree.evict(to_int<int64_t>(n, "RadixTree.evict", "num_blocks"));
          },
          py::arg("num_blocks"))
      .def("check", &PyRadixTree::check)
      .def_property_readonly("num_free", [](const PyRadixTree& t) { return t.pool.num_free(); })
      .def_property_readonly("num_evictable",
                             [](const PyRadixTree& t) { return t.tree.num_evictable_blocks(); })
      .def_property_readonly("num_nodes", [](const PyRadixTree& t) { return t.tree.num_nodes(); });
  py::class_<PyDraftIndex>(m, "DraftIndex")
      .def(py::init([](Object max_ngram, Object min_ngram) {
             return std::make_unique<PyDraftIndex>(to_int<int>(max_ngram, "DraftIndex", "max_ngram"),
                                                   to_int<int>(min_ngram, "DraftIndex", "min_ngram"));
           }),
           py::arg("max_ngram") = 4, py::arg("min_ngram") = 1)
      .def("extend", &PyDraftIndex::extend, py::arg("tokens"))
      .def(
          "truncate",
          [](PyDraftIndex& index, Object length) {
            index.truncate(to_int<int64_t>(length, "DraftIndex.truncate", "length"));
          },
          py::arg("length"))
      .def("fork", [](const PyDraftIndex& index) { return PyDraftIndex(index); })
      .def(
          "occurrences",
          [](const PyDraftIndex& index, Object shortest) {
            return index.occurrences(to_int<int>(shortest, "DraftIndex.occurrences", "shortest"));
          },
          py::arg("shortest") = 1)
      .def(
          "propose",
          [](const PyDraftIndex& index, Object k, bool latest) {
            return index.propose(to_int<int64_t>(k, "DraftIndex.propose", "k"), latest);
          },
          py::arg("k"), py::arg("latest") = true)
      .def("__len__", [](const PyDraftIndex& index) { return index.history.size(); });
}

}  // namespace skv::python
