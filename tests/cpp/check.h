// The smallest harness: CHECK(condition) ends the program with file, line and text; a test is a plain main().
#pragma once

#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#define CHECK(condition)                                                                 \
  do {                                                                                   \
    if (!(condition)) {                                                                  \
      std::fprintf(stderr, "%s:%d: CHECK(%s) failed\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                                      \
    }                                                                                    \
  } while (0)

#define CHECK_THROWS(statement, Error) \
  do {                                 \
    bool thrown = false;               \
    try {                              \
      statement;                       \
    } catch (const Error&) {           \
      thrown = true;                   \
    }                                  \
    CHECK(thrown);                     \
  } while (0)
