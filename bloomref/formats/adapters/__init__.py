"""Files of LoRA adapters: folders of PEFT, `.lora.h5` files of KerasHub."""
