# llama.cpp's helpers for its own programs are more than half of what its compiler reads, and llama-cpp-python uses none of them.
# That they are left out can only be said here: the package's own CMakeLists.txt insists on them.
set(LLAMA_BUILD_COMMON OFF)
