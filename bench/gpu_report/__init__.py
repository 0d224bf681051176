"""Reports about the GPU kernels, made from the root of the repository; nothing of this package ships in the wheel.

python -m bench.gpu_report (make kernels) needs no GPU. It runs the workloads (workloads.py, variants.py) as far as
their launches (triton_recording.py, cuda_recording.py), reads what the compilers made of each kernel (triton_code.py,
cuda_code.py, cubin.py), counts what each launch reads and writes (triton_traffic.py, cuda_traffic.py) and predicts the
time of a step on an H100 (roofline.py). python bench/gpu.py (make gpu) times the workloads on a GPU (timing.py).
"""
