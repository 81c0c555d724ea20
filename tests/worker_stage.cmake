# SPDX-License-Identifier: MIT
# A test double of kernels/engine.h. Objects, so that it wins over the real engine in any link order.
add_library(fake_engine OBJECT worker/fake_engine.c)
target_link_libraries(fake_engine PUBLIC pgpt_model)

pgpt_unit_test(engine_stage fake_engine pgpt_worker)

# The worker on the double: everything but the model is real. For chaos runs and where no engine is.
add_executable(pgpt-worker-fake EXCLUDE_FROM_ALL "${CMAKE_SOURCE_DIR}/worker/main.c")
target_link_libraries(pgpt-worker-fake PRIVATE fake_engine pgpt_worker)
target_compile_definitions(pgpt-worker-fake PRIVATE PGPT_VERSION="${PROJECT_VERSION}-fake")
