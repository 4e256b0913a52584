// SPDX-License-Identifier: Apache-2.0
// Without a device nearly all tests skip, for one and the same reason: that is one line, not three of each.
#include <gtest/gtest.h>

#include <cstdio>

#include "innerkv/cuda.h"

namespace {

/// Prints failures, and how many tests skipped.
class OneLine : public testing::EmptyTestEventListener {
    void OnTestPartResult(const testing::TestPartResult& result) override {
        if (result.failed())
            std::printf("%s:%d: %s\n", result.file_name(), result.line_number(), result.message());
    }
    void OnTestEnd(const testing::TestInfo& test) override {
        if (test.result()->Failed())
            std::printf("[  FAILED  ] %s.%s\n", test.test_suite_name(), test.name());
    }
    void OnTestProgramEnd(const testing::UnitTest& tests) override {
        // ctest knows a skipped test by the first word.
        if (tests.skipped_test_count() > 0)
            std::printf("[  SKIPPED ] %d tests: %s\n", tests.skipped_test_count(),
                        innerkv::cuda::unavailable_reason().c_str());
        std::printf("%d passed, %d failed\n", tests.successful_test_count(),
                    tests.failed_test_count());
    }
};

} // namespace

int main(int argc, char** argv) {
    testing::InitGoogleTest(&argc, argv);
    if (innerkv::cuda::devices().empty()) {
        testing::TestEventListeners& listeners = testing::UnitTest::GetInstance()->listeners();
        delete listeners.Release(listeners.default_result_printer());
        listeners.Append(new OneLine);
    }
    return RUN_ALL_TESTS();
}
